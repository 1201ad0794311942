# CIFAR-10 at 224 px, 8 GPUs of 96. The images are RGB arrays of 32 x 32 pixels: no
# image files to read, and no colours to swap. (RandAugment takes red for blue where it
# makes an image greyer.)
_base_ = './imagenet_bs64_psvit_224.py'

data_preprocessor = dict(num_classes=10, to_rgb=False)

train_pipeline = [
    *_base_.train_pipeline[1:-2],
    dict(
        _base_.train_pipeline[-2],
        hparams=dict(pad_val=[124, 116, 104], interpolation='bicubic'),
    ),
    _base_.train_pipeline[-1],
]
test_pipeline = _base_.test_pipeline[1:]

train_dataloader = dict(
    batch_size=96,
    dataset=dict(
        _delete_=True,
        _scope_='mmpretrain',
        type='CIFAR10',
        data_root='data/cifar10',
        split='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        _scope_='mmpretrain',
        type='CIFAR10',
        data_root='data/cifar10',
        split='test',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
