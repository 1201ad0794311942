# Stanford Cars at 224 px, as Oxford 102 Flowers.
_base_ = './flowers102_bs96_psvit_224.py'

num_classes = 196
data_root = 'data/cars'

data_preprocessor = dict(num_classes=num_classes)

train_dataloader = dict(
    dataset=dict(type='StanfordCars', data_root=data_root, split='train')
)
val_dataloader = dict(dataset=dict(type='StanfordCars', data_root=data_root))
test_dataloader = val_dataloader
