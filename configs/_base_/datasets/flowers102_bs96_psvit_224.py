# Oxford 102 Flowers at 224 px, 8 GPUs of 96.
_base_ = './imagenet_bs64_psvit_224.py'

data_preprocessor = dict(num_classes=102)

train_dataloader = dict(
    batch_size=96,
    dataset=dict(
        _delete_=True,
        _scope_='mmpretrain',
        type='Flowers102',
        data_root='data/flowers102',
        split='trainval',
        pipeline=_base_.train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        _scope_='mmpretrain',
        type='Flowers102',
        data_root='data/flowers102',
        split='test',
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = val_dataloader
