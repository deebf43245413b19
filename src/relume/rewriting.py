"""Forwards rewritten: a module's own `forward`, traced, in which activation calls become calls of submodules."""

from __future__ import annotations

import builtins
import copy
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from relume.nested import call
from relume.sites import Trace, undisturbed


class Refusal(Exception):
    """Why one place cannot be grafted; it becomes a sentence in the report, or a RemedyError when nothing is left."""


class Rewritten:
    """A module's own `forward`, kept on the instance, in which activation calls became calls of submodules.

    The module keeps its class, attributes, hooks and the names of its parameters. Where `forward` does something else
    in training (F.dropout with training=self.training), both versions are kept. Copies and pickles with its module.
    """

    def __init__(self, owner: nn.Module, codes: Mapping[bool, tuple[str, dict[str, Any]]]) -> None:
        self.owner = owner
        self.codes = dict(codes)  # training -> source, and the names it uses
        self._functions = {training: _compile(*code) for training, code in self.codes.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._functions[self.owner.training](self.owner, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments of the forward it stands for."""
        return inspect.signature(types.MethodType(self._functions[self.owner.training], self.owner))

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewritten:
        twin = Rewritten.__new__(Rewritten)
        memo[id(self)] = twin
        twin.codes, twin._functions = self.codes, self._functions
        twin.owner = copy.deepcopy(self.owner, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        codes = {}
        for training, (source, names) in self.codes.items():
            plain = {k: v for k, v in names.items() if not isinstance(v, types.ModuleType)}
            modules = {k: v.__name__ for k, v in names.items() if isinstance(v, types.ModuleType)}
            codes[training] = source, plain, modules
        return {"owner": self.owner, "codes": codes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import importlib

        self.owner = state["owner"]
        self.codes = {
            training: (source, {**plain, **{k: importlib.import_module(v) for k, v in modules.items()}})
            for training, (source, plain, modules) in state["codes"].items()
        }
        self._functions = {training: _compile(*code) for training, code in self.codes.items()}


def _compile(source: str, names: dict[str, Any]) -> Callable[..., Any]:
    scope = {**names, "__builtins__": builtins}
    exec(compile(source, "<forward rewritten by relume>", "exec"), scope)
    return scope["forward"]


class _Tracer(fx.Tracer):
    """Follows one module's own code; every module it calls is left as it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Spotter(fx.Interpreter):
    """Runs a graph and notes which node makes which activation calls."""

    def __init__(self, owner: nn.Module, graph: fx.Graph, trace: Trace) -> None:
        super().__init__(owner, garbage_collect_values=False, graph=graph)
        self.trace = trace
        self.made: dict[fx.Node, range] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = len(self.trace.calls)
        result = super().run_node(n)
        self.made[n] = range(before, len(self.trace.calls))
        return result


def _trace(owner: nn.Module, arguments: Mapping[str, Any]) -> fx.Graph:
    """The graph of the module's forward in its present mode; Refusal where it cannot be followed."""
    own = owner.__dict__.get("forward")
    if own is not None and not isinstance(own, Rewritten):
        raise Refusal(f"{type(owner).__name__}.forward was replaced on the instance")
    kind = type(owner)
    parameters = inspect.signature(kind.forward if own is None else own._functions[owner.training]).parameters
    defaults = {
        name: p.default
        for name, p in parameters.items()
        if name not in arguments and (p.default is None or isinstance(p.default, (bool, int, float, str)))
    }
    before = dict(owner.__dict__)
    registered = {name: dict(before[name]) for name in ("_parameters", "_buffers", "_modules")}
    try:
        if own is not None:
            owner.__class__ = type(kind.__name__, (kind,), {"forward": own._functions[owner.training]})
            del owner.__dict__["forward"]
        return _Tracer().trace(owner, concrete_args=defaults or None)
    except Exception as error:
        words = str(error).strip().split("\n")[0]
        raise Refusal(
            f"the code of {kind.__name__}.forward cannot be followed by torch.fx ({type(error).__name__}: {words})"
        ) from None
    finally:
        owner.__class__ = kind
        changed = [k for k, v in owner.__dict__.items() if k != "forward" and before.get(k) is not v]
        constants = [k for k in changed if k.startswith("_tensor_constant")]
        owner.__dict__.clear()
        owner.__dict__.update(before)
        for name, members in registered.items():
            owner.__dict__[name].clear()
            owner.__dict__[name].update(members)
        if constants:
            raise Refusal(f"{kind.__name__}.forward makes tensors of its own")
        if changed:
            raise Refusal(f"{kind.__name__}.forward sets attributes ({', '.join(sorted(changed))})")


def _spot(owner: nn.Module, graph: fx.Graph, arguments: Mapping[str, Any]) -> dict[int, fx.Node]:
    """Offset of each activation call in one run of the module -> the node that makes it."""
    values = {
        node: arguments.get(str(node.target), node.args[0] if node.args else None)
        for node in graph.nodes
        if node.op == "placeholder"
    }
    try:
        with undisturbed(owner), torch.no_grad(), Trace(owner) as trace:
            spotter = _Spotter(owner, graph, trace)
            spotter.run(initial_env=values)
    except Exception as error:
        raise Refusal(f"its traced code does not run ({type(error).__name__}: {error})") from None
    return {
        index: node for node, calls in spotter.made.items() if len(calls) == 1 or node.op == "call_module"
        for index in calls
    }  # fmt: skip


def first_arguments(model: nn.Module, path: str, inputs: Any) -> dict[str, Any]:
    """What the module at `path` is called with the first time, by name of the argument."""
    owner = model.get_submodule(path)
    seen: list[tuple[Any, Any]] = []
    handle = owner.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        with undisturbed(model), torch.no_grad():
            model.eval()
            call(model, inputs)
    finally:
        handle.remove()
    args, kwargs = seen[0]
    signature = inspect.signature(owner.forward)
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()):
        raise Refusal(f"{type(owner).__name__}.forward takes *args or **kwargs")
    return dict(signature.bind(*args, **kwargs).arguments)


def rewrite(
    owner: nn.Module, arguments: Mapping[str, Any], new: Mapping[int, tuple[str, nn.Module, bool]], before: bool
) -> None:
    """Give `owner` a forward in which the calls at these offsets go to (or through) new submodules."""
    mode = owner.training
    codes = {}
    try:
        for training in (False, True):
            owner.training = training
            graph = _trace(owner, arguments)
            nodes = _spot(owner, graph, arguments)
            for offset, (name, _, in_place) in new.items():
                if offset not in nodes:
                    raise Refusal("its call was not found in the traced code")
                _edit(graph, nodes[offset], name, before, in_place)
            code = graph.python_code("self")
            codes[training] = code.src, dict(code.globals)
    finally:
        owner.training = mode
    for name, module, _ in new.values():
        owner.add_module(name, module)
    owner.__dict__["forward"] = Rewritten(owner, codes)


def _edit(graph: fx.Graph, node: fx.Node, name: str, before: bool, in_place: bool) -> None:
    x: Any = node.args[0] if node.args else node.kwargs["input"]
    order = {n: i for i, n in enumerate(graph.nodes)}
    later = [user for user in x.users if order[user] > order[node]] if in_place else []
    with graph.inserting_before(node):
        new = graph.call_module(name, (x,))
    if before:
        node.replace_input_with(x, new)
    else:
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    for user in later:
        user.replace_input_with(x, node if before else new)
