# Copyright (c) mmpsvit contributors.
"""What a config says: types of its parts, and in which precision it trains."""

import ast
from collections.abc import Mapping


def type_name(part: object) -> str | None:
    """The type of a part of a config without its scope, also if it is a class."""
    if not isinstance(part, Mapping):
        return None
    kind = part.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', None)
    return name and name.split('.')[-1]


def precision_of(optim_wrapper: object) -> str | None:
    """The precision that an ``optim_wrapper`` asks for.

    Args:
        optim_wrapper (object): Its config.

    Returns:
        str | None: 'float32', or the dtype of mixed precision; None if another kind of
        wrapper decides, or it is no config.
    """
    if not isinstance(optim_wrapper, Mapping):
        return None
    kind = type_name(optim_wrapper) or 'OptimWrapper'
    if kind == 'AmpOptimWrapper':
        return str(optim_wrapper.get('dtype') or 'float16').removeprefix('torch.')
    return 'float32' if kind == 'OptimWrapper' else None


def saved_precision(meta: Mapping) -> str | None:
    """The precision of the training that wrote a checkpoint.

    It is in the text of the config, which is read but not run.

    Args:
        meta (Mapping): The ``meta`` of the checkpoint.

    Returns:
        str | None: As :func:`precision_of`; None if the text does not tell.
    """
    try:
        statements = ast.parse(meta['cfg']).body
    except (KeyError, SyntaxError, TypeError, ValueError):
        return None
    for statement in statements:
        match statement:
            case ast.Assign([ast.Name('optim_wrapper')], ast.Call() as value):
                # A dtype may be `torch.bfloat16`.
                settings = {
                    keyword.arg: ast.unparse(keyword.value).strip('\'"')
                    for keyword in value.keywords
                    if isinstance(keyword.value, ast.Constant | ast.Attribute)
                    and ast.unparse(keyword.value) != 'None'
                }
                return precision_of(settings)
    return None
