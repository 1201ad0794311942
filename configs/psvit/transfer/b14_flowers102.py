# PS-ViT-B/14, fine-tuned on Oxford 102 Flowers from an ImageNet classifier.
# DeiT's author gives the recipe for CIFAR-10 and Cars; for Flowers it is our
# assumption.
_base_ = [
    '../../_base_/models/psvit_b14.py',
    '../../_base_/datasets/flowers102_bs96_psvit_224.py',
    '../../_base_/schedules/transfer_bs768_sgd_1000e.py',
    '../../_base_/default_runtime.py',
]

load_from = None  # a checkpoint of ../b14.py; its head of 1000 classes is left out

model = dict(
    backbone=dict(drop_path_rate=0.0),
    head=dict(num_classes=_base_.data_preprocessor.num_classes),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
