"""The fixed words of the card: what no prediction of weights can do, and whom to cite."""

from __future__ import annotations

from alpharl_hub.manifest import MethodRecord

_UNTESTED = (
    "Nobody trained or tested these weights. Measure them on your own task, next to the last "
    "observed checkpoint, before you rely on them; without a measurement of your own that "
    "checkpoint is the safer choice."
)
_TESTED = (
    "Nobody trained these weights, and they were tested on what is listed under Scores only. "
    "Measure them on your own task, next to the last observed checkpoint, before you rely on them."
)
_FOR_ALL = (
    "A prediction continues what the run did so far. It cannot see a reward that stops rising, a "
    "collapse, or a learning rate that changes later.",
    "How far one can look ahead was measured on small models and short runs only. There, every "
    "method did harm when it was asked to go too far, and how far was too far differed from run "
    "to run.",
    "What the base and the run got wrong, or were never meant for, holds here too.",
)
_FOR_METHOD = {
    "alpharl": (
        "The method keeps one direction per matrix. On the small runs measured so far, the "
        "formula as published did about as well as simply keeping the last checkpoint, and "
        "continuing all weights along a straight line did better."
    ),
    "linear": (
        "The method supposes that every weight goes on as it went. Runs bend: the farther the "
        "target, the more of the predicted update points past where training would have gone. "
        "Norm layers are those of the last checkpoint."
    ),
    "relex": (
        "The method keeps one direction of each tensor's path and draws a line along it. It was "
        "published for mathematics; a replication on other tasks found predictions below the last "
        "observed checkpoint when it looked far ahead."
    ),
    "ols": (
        "The method draws a line through every weight over the checkpoints fitted. Runs bend: the "
        "farther the target, the more the line leaves what training would have done."
    ),
    "average": (
        "The method is a mean of checkpoints that were observed. It smooths noise, and in a run "
        "that still gets better it falls behind the last checkpoint."
    ),
}
_AUTHORS = {
    "2605.21468": (
        "Wei, Zhepei and Zhu, Xinyu and Chen, Wei-Lin and Huang, Chengsong and Huang, Jiaxin and "
        "Meng, Yu"
    ),
    "2510.00553": (
        "Cai, Yuchen and Cao, Ding and Xu, Xin and Yao, Zijun and Huang, Yuqing and Tan, Zhenyu "
        "and Zhang, Benyi and Sun, Guangzhong and Liu, Guiquan and Fang, Junfeng"
    ),
    "2601.04537": (
        "Wang, Tianle and Wu, Zhongyuan and Jin, Shenghao and Xu, Hao and Chen, Wei and Miao, Ning"
    ),
}


def limits(method: MethodRecord, is_tested: bool) -> tuple[str, ...]:
    """Return the limits of a prediction by this method, a sentence or two each."""
    own = _FOR_METHOD.get(method.name)
    for_all = (_TESTED if is_tested else _UNTESTED, *_FOR_ALL)
    return for_all if own is None else (*for_all, own)


def bibtex(method: MethodRecord) -> str:
    """Return the BibTeX entry of the method's paper, which `method.url` names by arXiv number."""
    eprint = method.url.rsplit("/", 1)[-1]
    fields = {
        "title": f"{{{method.paper}}}",
        "author": _AUTHORS.get(eprint),
        "year": f"20{eprint[:2]}",
        "eprint": eprint,
        "archivePrefix": "arXiv",
        "url": method.url,
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value is not None]
    return "\n".join([f"@misc{{{method.name}{eprint.replace('.', '')},", *lines, "}"])
