# Copyright (c) mmpsvit contributors.
"""Settings of an architecture: completed and checked."""

REQUIRED_ARCH_KEYS = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
OPTIONAL_ARCH_KEYS = ('stem_base_channels', 'stem_channels')


def resolve_arch(arch: str | dict, arch_zoo: dict[str, dict]) -> dict:
    """Return a complete copy of an architecture's settings.

    Args:
        arch (str | dict): Name in the zoo, or settings, as in :class:`PSViT`.
        arch_zoo (dict[str, dict]): Settings by name.

    Returns:
        dict: All settings, optional ones filled in.

    Raises:
        ValueError: If the name is unknown, or keys are missing, unknown or clash.
    """
    if isinstance(arch, str):
        if arch not in arch_zoo:
            raise ValueError(
                f'arch must be one of {list(arch_zoo)} or a dict, got {arch!r}'
            )
        arch = arch_zoo[arch]
    unknown = sorted(set(arch) - {*REQUIRED_ARCH_KEYS, *OPTIONAL_ARCH_KEYS})
    missing = [key for key in REQUIRED_ARCH_KEYS if key not in arch]
    if unknown or missing:
        raise ValueError(
            f'arch has unknown keys {unknown} and lacks the keys {missing}; '
            f'required are {REQUIRED_ARCH_KEYS}, optional {OPTIONAL_ARCH_KEYS}'
        )
    arch = {
        'stem_base_channels': 64,
        'stem_channels': (256, arch['embed_dims']),
        **arch,
    }
    if not arch['stem_channels'] or arch['stem_channels'][-1] != arch['embed_dims']:
        raise ValueError(
            'arch.stem_channels must end with arch.embed_dims = '
            f'{arch["embed_dims"]}, got {arch["stem_channels"]}'
        )
    if arch['embed_dims'] % arch['num_heads']:
        raise ValueError(
            'arch.embed_dims must be a multiple of arch.num_heads, got '
            f'{arch["embed_dims"]} and {arch["num_heads"]}'
        )
    return arch
