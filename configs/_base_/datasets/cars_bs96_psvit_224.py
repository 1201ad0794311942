# Stanford Cars at 224 px, as Oxford 102 Flowers.
_base_ = './flowers102_bs96_psvit_224.py'

data_preprocessor = dict(num_classes=196)

train_dataloader = dict(
    dataset=dict(type='StanfordCars', data_root='data/cars', split='train')
)
val_dataloader = dict(dataset=dict(type='StanfordCars', data_root='data/cars'))
test_dataloader = val_dataloader
