# The paper's schedule: AdamW, batch 512, 300 epochs, cosine. The official code adds
# 10 epochs at 1e-5, which the paper does not mention. No decay on 1-D parameters and
# biases is inherited.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'

optim_wrapper = dict(
    optimizer=dict(
        type='mmpsvit.AdamW',  # PyTorch's, in fewer launches on CUDA
        lr=5e-4,  # for a total batch of 512
        weight_decay=0.05,  # the paper gives none; the official code's for B
    ),
    paramwise_cfg=dict(custom_keys={'.cls_token': dict(decay_mult=0.0)}),
)

# One cosine over all epochs, whose first epochs the warm-up replaces. Schedulers
# multiply, which takes less than 0.1% off the warm-up. Without an `end`, MMEngine takes
# the length of the training.
param_scheduler = [
    dict(
        _scope_='mmpretrain',
        type='LinearLR',
        start_factor=2e-3,  # from 1e-6, as the official code
        by_epoch=True,
        end=3,  # epochs, likewise
        convert_to_iter_based=True,
    ),
    dict(
        _scope_='mmpretrain',
        type='mmpsvit.CosineFactorLR',
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(max_epochs=300)

auto_scale_lr = dict(base_batch_size=512)
