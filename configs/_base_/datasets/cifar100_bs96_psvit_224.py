# CIFAR-100, as CIFAR-10.
_base_ = './cifar10_bs96_psvit_224.py'

num_classes = 100
data_root = 'data/cifar100'

data_preprocessor = dict(num_classes=num_classes)

train_dataloader = dict(dataset=dict(type='CIFAR100', data_root=data_root))
val_dataloader = dict(dataset=dict(type='CIFAR100', data_root=data_root))
test_dataloader = val_dataloader
