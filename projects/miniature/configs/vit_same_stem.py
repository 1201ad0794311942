# vit.py with the CNN stem of psvit.py: its feature map of stride 4 is cut into as many
# patches as there are points. Not in the paper: it tells what the stem contributes.
_base_ = './vit.py'

# Needs the repository's root in PYTHONPATH.
custom_imports = dict(imports=['projects.miniature.stem'])

model = dict(
    backbone=dict(patch_cfg=dict(conv_type='mmpsvit.MiniatureStemPatchEmbedding'))
)
