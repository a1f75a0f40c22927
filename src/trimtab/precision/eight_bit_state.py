"""EightBitState: an optimizer's moments in one byte each between its steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trimtab.checks import one_of, whole
from trimtab.collectives import local_part
from trimtab.levers import refuse_state_elsewhere
from trimtab.parameters import Entry, Judged, Rule, rule_or
from trimtab.precision.code_book import Coder, Codes, Map, check_block, code_book
from trimtab.precision.meter import ShrinkageMeter
from trimtab.precision.randomness import Generators, shard_of
from trimtab.precision.state_meter import StateMeter
from trimtab.precision.stretch import in_one_stretch

UNSIGNED = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum", "acc_delta")
"""Names of state that is never negative: of Adam and its relatives, RMSprop, Adamax, Adagrad, Adadelta."""

Rounding = Literal["nearest", "stochastic"]


class EightBitState:
    """A lever that keeps the state of any optimizer in codes of a byte, with one float32 for each block (arXiv 2110.02861).

        before the step: state <- entry[code] * absmax        after it: code <- nearest entry to state / absmax

    What is kept are the state's tensors of the parameter's shape. Between two steps, so through the forward and backward pass
    with its activations, they take 1 + 4 / block bytes for each number instead of 4; during the step the optimizer sees
    float tensors (`AdamW8bit` takes one parameter after the other). `Handle.remove` gives the optimizer its float state back.
    The lever holds the codes: save `Handle.state_dict()` beside the optimizer's.

    A second moment far below its block's largest would get the code of 0, and its step become m / eps. So a number above 0
    has at least the smallest entry above 0, 3.25e-7 of the block's largest [ours]; `floor=False` is the published form.

    Under FSDP blocks lie within a rank's part of a tensor: with other blocks at the borders, results differ from those of one
    process by what rounding to a byte does.

    Args:
        map: "dynamic" (default) or "linear", as for `encode`.
        bits: of a code, 4 to 8, default 8; each code is stored in a whole byte.
        block: entries that share a scale; a power of two of 16 or more. Default 256 (bitsandbytes; the paper has 2048).
        min_size: tensors with fewer entries stay as they are. Default 4096 (paper).
        floor: default True, see above.
        rounding: "nearest" (default) or "stochastic" [ours].
        seed: of stochastic rounding; numbers are a function of it, the step and the tensor.
        unsigned: names of state that is never negative, in codes without a sign.
        meter: measures what codes do to the state, as kinds "state exp_avg" and so on.
        rule: which parameters' state. Default: all but tables of embeddings, whose state the paper keeps in 32 bits.

    Raises:
        ValueError: a number or name out of range; (at the step) state named in `unsigned` that is negative.

    Example:
        >>> import trimtab
        >>> net = nn.Linear(64, 64)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> lever = EightBitState(min_size=64)
        >>> handle = trimtab.attach(optimizer, lever, model=net)
        >>> net(torch.ones(1, 64)).sum().backward()
        >>> optimizer.step()
        >>> list(optimizer.state[net.weight]), lever.bytes
        (['step'], (8456, 33280))
    """

    one_optimizer = "it holds the state of one optimizer; make one for each"

    def __init__(
        self,
        map: Map = "dynamic",
        bits: int = 8,
        block: int = 256,
        min_size: int = 4096,
        *,
        floor: bool = True,
        rounding: Rounding = "nearest",
        seed: int = 0,
        unsigned: Sequence[str] = UNSIGNED,
        rule: Rule | None = None,
        meter: ShrinkageMeter | None = None,
    ) -> None:
        code_book(map, bits)
        if isinstance(unsigned, str):
            raise TypeError(f"unsigned must be several names, got the string {unsigned!r}")
        self.map, self.bits, self.block = map, bits, check_block(block)
        self.min_size, self.floor = whole("min_size", min_size, 1), floor
        one_of("rounding", rounding, get_args(Rounding))
        self.rounding: Rounding = rounding
        self.seed, self.unsigned = whole("seed", seed), tuple(unsigned)
        self.rule = rule_or(rule, Rule(min_ndim=0, role="any"))
        self._default_rule = rule is None
        self._meter = StateMeter(meter)
        self.step = 0
        self._random = Generators(seed)
        self._coders: dict[tuple[torch.device, bool], Coder] = {}
        self._codes: dict[str, dict[str, tuple[Codes, str]]] = {}
        self._judged: Judged[tuple[list[Entry], list[tuple[Entry, str]]]] = Judged()
        self._entries: Sequence[Entry] = ()
        self._optimizer: Callable[[], torch.optim.Optimizer | None] = lambda: None

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Remember whose state it is; called by `trimtab.attach`."""
        refuse_state_elsewhere(f"{type(self).__name__} keeps", optimizer)
        self._optimizer, self._entries = weakref.ref(optimizer), parameters

    def unbind(self) -> None:
        """Give the optimizer its float state back; called by `Handle.remove`."""
        self.before_step(self._entries)
        optimizer = self._optimizer()
        if optimizer is not None:
            for entry in self._entries:  # each in memory of its own from now on
                state = optimizer.state.get(entry.parameter, {})
                state |= {name: state[name].clone() for name in self._codes.get(entry.name, {}) if name in state}
        self._codes.clear()
        self._meter.flush()
        self._optimizer = lambda: None

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Codes to numbers, where the step will look for them; called by `trimtab.attach`."""
        optimizer = self._optimizer()
        self._entries = parameters
        if optimizer is None:
            return
        wanted = [
            (entry, name, codes, getattr(torch, dtype))
            for entry in self._chosen(parameters)
            for name, (codes, dtype) in self._codes.get(entry.name, {}).items()
            if name not in optimizer.state[entry.parameter]  # a step that was skipped left it
        ]
        room = in_one_stretch([(entry.parameter, dtype) for entry, _, _, dtype in wanted])
        for (entry, name, codes, _), like in zip(wanted, room, strict=True):
            part, coder = local_part(like), self._coder(codes.codes.device, name)
            if part.is_contiguous() and part.dtype == torch.float32 and part.device == codes.codes.device:
                coder.decoded(codes, part.view(-1))
            else:
                part.copy_(coder.decoded(codes).view(part.shape))
            optimizer.state[entry.parameter][name] = like

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Numbers to codes; called by `trimtab.attach`."""
        optimizer = self._optimizer()
        self.step += 1
        if optimizer is None:
            return
        for entry in self._chosen(parameters):
            state = optimizer.state.get(entry.parameter, {})
            for name in [name for name, value in state.items() if _alike(value, entry.parameter)]:
                value = state[name]
                part, generator = local_part(value), None
                if self.rounding == "stochastic":
                    key = (self.step, entry.name, name, *shard_of(entry.parameter))
                    generator = self._random.begin(part.device, *key)
                try:
                    known = self._codes.get(entry.name, {}).get(name)
                    out = None if known is None else known[0]
                    codes = self._coder(part.device, name).encoded(part, generator, out)
                except ValueError as error:
                    raise ValueError(f"{name} of {entry.name}: {error}; see `unsigned`") from error
                if self._meter.due(self.step - 1):
                    self._meter.add(name, entry, part, self._coder(part.device, name).decoded(codes))
                dtype = str(value.dtype).removeprefix("torch.")
                self._codes.setdefault(entry.name, {})[name] = (codes, dtype)
                del state[name]
        self._meter.end(self.step - 1)

    def _coder(self, device: torch.device, name: str) -> Coder:
        """One for each device and kind of state, with its buffers."""
        signed = name not in self.unsigned
        if (device, signed) not in self._coders:
            self._coders[device, signed] = Coder(
                self.map, self.bits, self.block, signed=signed, floor=self.floor,
                stochastic=self.rounding == "stochastic", device=device,
            )  # fmt: skip
        return self._coders[device, signed]

    def _chosen(self, parameters: Sequence[Entry]) -> list[Entry]:
        return self._judged(parameters, self._judge)[0]

    def _judge(self, parameters: Sequence[Entry]) -> tuple[list[Entry], list[tuple[Entry, str]]]:
        chosen, left = [], []
        for entry in parameters:
            reason = self._reason_against(entry)
            if reason is None:
                chosen.append(entry)
            else:
                left.append((entry, reason))
        return chosen, left

    def _reason_against(self, entry: Entry) -> str | None:
        if entry.parameter.numel() < self.min_size:
            return f"{entry.parameter.numel()} entries, fewer than min_size={self.min_size}"
        if entry.parameter.is_complex():
            return "complex; codes are of real numbers"
        if self._default_rule and isinstance(entry.owner, nn.Embedding | nn.EmbeddingBag):
            return "a table of embeddings, whose state stays in 32 bits; give a rule to take it"
        return self.rule.reason_against(entry)

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Parameters whose state, or a part of it, stays as it is, with the reason; a part is known after the first step."""
        chosen, left = self._judged(self._entries, self._judge)
        return [(entry.name, reason) for entry, reason in left] + [
            (entry.name, reason) for entry in chosen if (reason := self._unlike(entry)) is not None
        ]

    def _unlike(self, entry: Entry) -> str | None:
        """Why some of the optimizer's tensors for a parameter are not kept in codes; None where all are."""
        optimizer = self._optimizer()
        state = {} if optimizer is None else optimizer.state.get(entry.parameter, {})
        kept = {
            name: f"{name} {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
            for name, value in state.items()
            if isinstance(value, Tensor) and value.ndim and not _alike(value, entry.parameter)
        }
        if not kept:
            return None
        return f"{'; '.join(kept.values())}: no floats of the parameter's shape {tuple(entry.parameter.shape)}"

    def _all(self) -> Iterator[Codes]:
        for states in self._codes.values():
            yield from (codes for codes, _ in states.values())

    @property
    def bytes(self) -> tuple[int, int]:
        """What the optimizer's tensors of state take between steps on this rank, and what they would in 32 bits."""
        optimizer = self._optimizer()
        kept = list(self._all())
        plain = [] if optimizer is None else [v for state in optimizer.state.values() for v in state.values()]
        sizes = [local_part(v) for v in plain if isinstance(v, Tensor) and v.ndim]
        rest = sum(v.numel() * v.element_size() for v in sizes)
        return sum(each.nbytes for each in kept) + rest, sum(4 * each.codes.numel() for each in kept) + rest

    def describe(self) -> dict[str, float]:
        """Bytes of the state, and of the same in 32 bits."""
        return dict(zip(("state_bytes", "state_bytes_in_32_bits"), map(float, self.bytes), strict=True))

    def settings(self) -> dict[str, Any]:
        """What changes the result."""
        names = ("map", "bits", "block", "min_size", "floor", "rounding", "seed")
        return {**{name: getattr(self, name) for name in names}, "unsigned": list(self.unsigned)}

    def state_dict(self) -> dict[str, Any]:
        """Settings, steps counted, and the codes."""
        codes = {
            entry: {
                name: {"codes": kept.codes.clone(), "absmax": kept.absmax.clone(), "dtype": dtype}
                for name, (kept, dtype) in states.items()
            }
            for entry, states in self._codes.items()
        }
        return {"settings": self.settings(), "step": self.step, "codes": codes, **self._meter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are others. Float state of the same names is let go."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved settings {state.get('settings')} are not those of {self!r}")
        loaded = {
            entry: {
                name: (Codes(kept["codes"].clone(), kept["absmax"].clone()), str(kept["dtype"]))
                for name, kept in states.items()
            }
            for entry, states in state["codes"].items()
        }
        optimizer = self._optimizer()
        for entry in self._entries:
            for name, (codes, _) in loaded.get(entry.name, {}).items():
                if len(codes.codes) != local_part(entry.parameter).numel():
                    raise ValueError(
                        f"saved codes of {name} of {entry.name} are {len(codes.codes)}, the parameter here has "
                        f"{local_part(entry.parameter).numel()} entries on this rank"
                    )
        self.step, self._codes = int(state["step"]), loaded
        self._meter.load_state_dict(state)
        for entry in self._entries:
            device = local_part(entry.parameter).device
            for name, (codes, dtype) in loaded.get(entry.name, {}).items():
                loaded[entry.name][name] = (Codes(codes.codes.to(device), codes.absmax.to(device)), dtype)
                if optimizer is not None and entry.parameter in optimizer.state:
                    optimizer.state[entry.parameter].pop(name, None)

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.settings().items() if name != "unsigned"]
        return f"EightBitState({', '.join(shown)})"


def _alike(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape and value.ndim > 0
