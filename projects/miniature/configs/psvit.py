# PS-ViT-B/14 scaled down to 4 x 4 points on 64 px; a cell of the start grid has 16 px,
# as there. Data, optimizer and hooks are those of the demonstration.
#
# What runs differ in besides the network is set by environment variables (run.py does):
#   MINIATURE_CANVAS  side of the images in pixels
#   MINIATURE_STEPS   training steps
#   MINIATURE_LR      learning rate after warm-up
#   MINIATURE_DATA    folder of the data sets, one folder per canvas in it
_base_ = '../../../configs/cluttered_digits/psvit.py'

canvas = int('{{$MINIATURE_CANVAS:64}}')
max_iters = int('{{$MINIATURE_STEPS:1000}}')
data_root = f'{{$MINIATURE_DATA:data/miniature}}/{canvas}'

# In full, so that no change of the demonstration changes an experiment.
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=64,
            num_layers=8,  # iterations and encoder layers together
            num_heads=2,
            feedforward_channels=192,
            stem_base_channels=32,
            stem_channels=(64, 64),
        ),
        sampler=dict(
            _delete_=True,
            type='mmpsvit.ProgressiveSampling',
            num_iters=4,
            num_points=4,  # per side
        ),
    ),
    head=dict(in_channels=64),
)

# Images are decoded in the training process: each run has one core.
in_process = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root),
)
train_dataloader = in_process
val_dataloader = in_process
test_dataloader = in_process

optim_wrapper = dict(optimizer=dict(lr=float('{{$MINIATURE_LR:5e-4}}')))
param_scheduler = [
    dict(
        _scope_='mmpretrain',
        type='LinearLR',
        start_factor=0.01,
        by_epoch=False,
        end=max(1, max_iters // 20),
    ),
    dict(
        _scope_='mmpretrain',
        type='CosineAnnealingLR',
        by_epoch=False,
        T_max=max_iters,
        end=max_iters,
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=max(1, max_iters // 10))

default_hooks = dict(
    # The page's curves are read from the log, by step.
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(interval=max(1, max_iters // 10), by_epoch=False),
)
