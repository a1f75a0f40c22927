"""What is claimed of levers on the gradient's way back and on the step; see claims.py."""

from __future__ import annotations

from claims import Claim, key, less, points

STEP_SYSTEMS = {
    "DiffGrad": 7, "Fira": 11, "AdaptiveBatchSize": 25, "CLASSP": 33, "TrAct": 36, "ActivationClip": 60, "NormMatch": 63,
    "SGDP": 71, "AdamP": 71, "scale_learning_rate": 76,
}  # fmt: skip
"""Which number of docs/systems.yaml a claim belongs to."""


def _shorter(lever: str, own: str, other: str, words: str) -> Claim:
    text = f"weights whose length means nothing grow less than half as much as under {words}"
    return Claim(lever, "adamp", text, "steps", {"growth, %": key(f"{own} growth", 100), words: key(f"{other} growth", 100)},
                 (lambda row: 0.5 * row[f"{other} growth"] - row[f"{own} growth"],), 1)  # fmt: skip


def _lower(name: str) -> Claim:
    text = f"on a function like the paper's '{name}' it ends lower than Adam at its rate and at half of it"
    shown = {"end": key(f"{name} diffgrad"), "Adam": key(f"{name} adam"), "at half": key(f"{name} adam at half")}
    above = (less(f"{name} adam", f"{name} diffgrad"), less(f"{name} adam at half", f"{name} diffgrad"))
    return Claim("DiffGrad", "diffgrad", text, "steps", shown, above, 4)


STEP_CLAIMS = (
    _lower("valley"), _lower("wall"), _lower("roof"),
    _shorter("SGDP", "sgdp", "sgd", "SGD with momentum"), _shorter("AdamP", "adamp", "adam", "Adam"),
    Claim("CLASSP", "classp", "when the second of two tasks is learned to 90 %, more of the first is left than by SGD, than by AdaGrad and than with a pull towards the first's weights",
          "steps", {"first task, %": key("classp first", 100), "SGD": key("sgd first", 100), "AdaGrad": key("adagrad first", 100), "pull": key("pull first", 100)},
          (less("classp first", "sgd first"), less("classp first", "adagrad first"), less("classp first", "pull first")), 1),
    Claim("AdaptiveBatchSize", "batch-size", "to 95 % with at most 1.2 times the examples of a batch of 16, in at most a third of its steps", "steps",
          {"examples": key("grown examples"), "of 16": key("fixed examples"), "steps": key("grown steps"), "of 16 ": key("fixed steps")},
          (lambda row: 1.2 * row["fixed examples"] - row["grown examples"], lambda row: row["fixed steps"] / 3 - row["grown steps"]), 0),
    Claim("scale_learning_rate", "learning-rates", "from batches of 4 to 256 the largest rate that SGD bears grows like the batch: a slope of 0.7 to 1.2 in logarithms", "steps",
          {"slope": key("sgd slope"), "rate at 4": key("sgd rate 4"), "at 256": key("sgd rate 256")},
          (lambda row: row["sgd slope"] - 0.7, lambda row: 1.2 - row["sgd slope"]), 2),
    Claim("scale_learning_rate", "learning-rates", "the largest rate that Adam bears grows like the batch's root: a slope of 0.35 to 0.65", "steps",
          {"slope": key("adam slope"), "rate at 4": key("adam rate 4"), "at 256": key("adam rate 256")},
          (lambda row: row["adam slope"] - 0.35, lambda row: 0.65 - row["adam slope"]), 2),
    Claim("lora_plus_groups", "lora-plus", "of a change of rank 4 less is left after 50 steps than with one rate for both factors, each at its best rate", "steps",
          {"left, %": key("lora+ left", 100), "one rate": key("lora left", 100)}, (less("lora left", "lora+ left"),), 1),
    Claim("Fira", "fira", "at one rank a lower loss than GaLore, within 3 % of Adam's", "subspace",
          {"loss": key("fira loss"), "GaLore": key("galore loss"), "Adam": key("adam loss")},
          (less("galore loss", "fira loss"), lambda row: 1.03 * row["adam loss"] - row["fira loss"])),
    Claim("Fira", "fira", "its states take at most 45 % of Adam's bytes, embedding and head with Adam's included", "subspace",
          {"share, %": key("fira states", 100)}, (lambda row: 0.45 - row["fira states"],), 1),
    Claim("ActivationClip", "pixel-clip", "under heavy-tailed noise a picture is found nearer than by a clamp of each element, each at its best rate and bound", "backward",
          {"squared error": key("picture vector"), "clamp": key("picture element"), "no clip": key("picture none")}, (less("picture element", "picture vector"),), 4),
    Claim("NormMatch", "norm-match", "an input that counts a hundredfold where two meet does not starve the other: a probe of the other tells more than without, and within two points of its own", "backward",
          {"other, %": key("matched weak", 100), "without": key("plain weak", 100), "hundredfold one": key("matched strong", 100)},
          (less("matched weak", "plain weak"), less("matched weak", "matched strong", 0.02)), 1),
    Claim("NormMatch", "norm-match", "the whole is more accurate", "backward", points("matched whole", "plain whole"), (less("matched whole", "plain whole"),), 1),
    Claim("TrAct", "tract", "after half of the epochs more accurate by half a point than without after half, and no less than without after all, each at its best rate", "backward",
          {"half, %": key("tract 4 accuracy", 100), "without, half": key("plain 4 accuracy", 100), "without, all": key("plain 8 accuracy", 100)},
          (less("tract 4 accuracy", "plain 4 accuracy", -0.005), less("tract 4 accuracy", "plain 8 accuracy")), 1),
    Claim("StableMax", "stable-max", "in float16, without weight decay, softmax leaves more than half of the pairs that are right without a gradient of their own logit; this loss leaves less than a hundredth", "backward",
          {"without, %": key("stable max without gradient", 100), "softmax": key("softmax without gradient", 100)},
          (lambda row: 0.01 - row["stable max without gradient"], lambda row: row["softmax without gradient"] - 0.5), 1),
)  # fmt: skip
