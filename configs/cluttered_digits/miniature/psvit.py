# The paper's claims in miniature, see tools/reproduce_mini.py: PS-ViT-B/14 scaled down
# to 4 x 4 points on 64 px. A cell of the start grid has 16 px at stride 4, as there.
#
# What the runs differ in besides the network is set by environment variables:
#   MINIATURE_CANVAS  side of the images in pixels
#   MINIATURE_STEPS   training steps
#   MINIATURE_LR      learning rate after warm-up, by default that of ../psvit.py
#   MINIATURE_DATA    folder of the data sets, one folder per canvas in it
_base_ = '../psvit.py'

canvas = int('{{$MINIATURE_CANVAS:64}}')
max_iters = int('{{$MINIATURE_STEPS:1000}}')
lr = float('{{$MINIATURE_LR:5e-4}}')
data_root = f'{{$MINIATURE_DATA:data/miniature}}/{canvas}'
embed_dims = 64
num_heads = 2
num_layers = 8  # iterations and encoder layers together
num_points = 4  # points per side

model = dict(
    backbone=dict(
        arch=dict(
            embed_dims=embed_dims,
            num_layers=num_layers,
            num_heads=num_heads,
            feedforward_channels=3 * embed_dims,
            stem_channels=(embed_dims, embed_dims),
        ),
        sampler=dict(num_points=num_points),
    ),
    head=dict(in_channels=embed_dims),
)

# Images are decoded in the training process: each run has one core.
train_dataloader = dict(num_workers=0, dataset=dict(data_root=data_root))
val_dataloader = dict(num_workers=0, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=max(1, max_iters // 20)),
    dict(_base_.param_scheduler[1], T_max=max_iters, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max(1, max_iters // 10))

default_hooks = dict(checkpoint=dict(interval=max(1, max_iters // 10)))
