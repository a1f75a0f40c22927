"""Every check of a value, once: bad input is refused at once, with the value and what is allowed.

A value of the wrong kind is a TypeError, one out of range a ValueError.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """`value` as a float; it must be a finite number, NumPy's are too, within the bounds given.

    Example:
        >>> number("threshold", 1, above=0, most=1)
        1.0
        >>> number("threshold", 2, above=0, most=1)
        Traceback (most recent call last):
        ...
        ValueError: threshold must lie in (0, 1], got 2
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    found = float(value)
    inside = (above is None or found > above) and (least is None or found >= least)
    if math.isfinite(found) and inside and (below is None or found < below) and (most is None or found <= most):
        return found
    low = f"({above:g}" if above is not None else f"[{least:g}" if least is not None else "(-inf"
    if below is not None or most is not None:
        allowed = f"lie in {low}, {below:g})" if below is not None else f"lie in {low}, {most:g}]"
    else:
        allowed = "be finite" + (f" and above {above:g}" if above is not None else "")
        allowed += f" and {least:g} or more" if least is not None else ""
    raise ValueError(f"{name} must {allowed}, got {value}")


def positive(name: str, value: object) -> float:
    """`value` as a float; it must be finite and above 0.

    Example:
        >>> positive("max_norm", 1)
        1.0
    """
    return number(name, value, above=0)


def non_negative(name: str, value: object) -> float:
    """`value` as a float; it must be finite and 0 or more.

    Example:
        >>> non_negative("strength", 1)
        1.0
    """
    return number(name, value, least=0)


def below_one(name: str, value: object) -> float:
    """`value` as a float; it must lie in [0, 1), as a momentum or a sparsity does.

    Example:
        >>> below_one("momentum", 0.9)
        0.9
    """
    return number(name, value, least=0, below=1)


def whole(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int; it must be a whole number (True and 2.0 are none) within the bounds given.

    Example:
        >>> whole("every", 0, least=1)
        Traceback (most recent call last):
        ...
        ValueError: every must be a whole number of 1 or more, got 0
    """
    allowed = "a whole number"
    if least is not None:
        allowed += f" of {least} or more" if most is None else f" in {least}..{most}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    found = int(value)
    if (least is not None and found < least) or (most is not None and found > most):
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return found


def flag(name: str, value: object) -> bool:
    """`value`, which must be True or False.

    Example:
        >>> flag("conv_only", True)
        True
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def one_of(name: str, value: str, allowed: Iterable[str]) -> str:
    """`value`, which must be among `allowed`.

    Example:
        >>> one_of("granularity", "tensor", ("tensor", "channel"))
        'tensor'
    """
    if value not in (allowed := tuple(allowed)):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def some_of(name: str, given: str | Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """The names given, at least one and all among `allowed`, in its order; a single one may be a plain string.

    Example:
        >>> some_of("track", ("updates", "gradients"), ("gradients", "weights", "updates"))
        ('gradients', 'updates')
    """
    given = (given,) if isinstance(given, str) else tuple(given)
    if not given or not set(given) <= set(allowed):
        raise ValueError(f"{name} must be some of {', '.join(map(repr, allowed))}, got {given!r}")
    return tuple(one for one in allowed if one in given)


def shares(name: str, values: Iterable[object]) -> tuple[float, ...]:
    """The values as floats: finite, 0 or more, not all 0.

    Example:
        >>> shares("weights", (2, 1))
        (2.0, 1.0)
    """
    found = tuple(non_negative(name, value) for value in values)
    if not any(found):
        raise ValueError(f"{name} must be 0 or more and not all 0, got {found}")
    return found


def n_of_m(name: str, value: object) -> tuple[int, int]:
    """(N, M) of a pattern "N:M": N of every M consecutive weights stay.

    Example:
        >>> n_of_m("pattern", "2:4")
        (2, 4)
    """
    match = re.fullmatch(r"(\d+):(\d+)", str(value))
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ValueError(f"{name} must be N:M with 0 < N < M, such as '2:4' (2 of 4 weights stay), got {value!r}")
    return int(match[1]), int(match[2])


def hint(word: object, known: Iterable[str], kind: str, otherwise: Sequence[str] = ()) -> str:
    """What to say of an unknown word: the nearest known ones, those of `otherwise` where none is near, or all of this kind.

    Example:
        >>> hint("hoier", ("l1", "hoyer"), "levers"), hint("x", ("l1", "hoyer"), "levers")
        ('did you mean hoyer?', 'levers are l1, hoyer')
    """
    known = list(known)
    if near := _near(str(word), known) or otherwise:
        return f"did you mean {' or '.join(near)}?"
    return f"{kind} are {', '.join(known) or 'none'}"


def _near(word: str, known: Sequence[str]) -> list[str]:
    """At most three known names like `word`; case, hyphens and spaces do not count, a beginning counts for much."""
    plain = {name: re.sub(r"[-_ ]", "", name.lower()) for name in known}
    wanted = re.sub(r"[-_ ]", "", word.lower())
    scores = {}
    for name, own in plain.items():
        score = difflib.SequenceMatcher(None, wanted, own).ratio()
        if len(wanted) > 2 and (own.startswith(wanted) or wanted.startswith(own)):
            score = max(score, 0.9)
        scores[name] = 1.0 if own == wanted else score
    best = max(scores.values(), default=0.0)
    least = 1.0 if best == 1.0 else max(0.5, best - 0.25)
    found = [name for name in known if scores[name] >= least]
    return sorted(found, key=lambda name: -scores[name])[:3]
