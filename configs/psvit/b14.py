# PS-ViT-B/14 on ImageNet. The paper: 81.7% top-1.
_base_ = [
    '../_base_/models/psvit_b14.py',
    '../_base_/datasets/imagenet_bs64_psvit_224.py',
    '../_base_/schedules/imagenet_bs512_adamw_300e.py',
    '../_base_/default_runtime.py',
]

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))

# The paper does not mention the average; the official code evaluates it. It is of no
# use below some ten thousand steps: after 1000 it still is 96% initial weights.
custom_hooks = [
    dict(
        _scope_='mmpretrain',
        type='EMAHook',
        ema_type='mmpsvit.ForeachEMA',
        momentum=4e-5,
        update_buffers=True,
        priority='ABOVE_NORMAL',
    )
]
