# PS-ViT-Ti/14, fine-tuned on CIFAR-10 from an ImageNet classifier.
_base_ = './b14_cifar10.py'

load_from = None  # a checkpoint of ../ti14.py; its head of 1000 classes is left out

# Dropout and mixup as for ImageNet, where they differ from B's; no random erasing.
model = dict(
    backbone=dict(arch='tiny', drop_rate=0.0),
    head=dict(in_channels=192),
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ],
    ),
)
