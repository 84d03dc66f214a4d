"""The kinds of fault, as changes of a syntax tree.

What is left out, and why:

- docstrings, annotations, `assert` and ``raise AssertionError`` (bugs of ours, unreachable by
  design), the arguments of `raise` and the
  text of f-strings (wording; which error is raised, and when, is not left out), `__repr__`, `__str__`, `describe`
  (for the reader's eye), and the ``name=`` of a tensor expression;
- strings elsewhere: a changed name fails at import or is a text for people, and comparisons are negated anyway;
- ``frozen=`` of dataclasses and ``strict=`` of zip: declarations that guard against bugs of ours, as assertions do;
- the ``-1`` of a `reshape`, for which numpy takes any negative number;
- arguments that are swapped where their order cannot matter (`max`, `min`, `gcd`, `array_equal`, TVM's
  `all`, the first two of `clip`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isfinite

COSMETIC = {"__repr__", "__str__", "describe"}
UNSEEN_KEYWORDS = {"name", "frozen", "strict"}
SYMMETRIC = {"max", "min", "maximum", "minimum", "clip", "array_equal", "gcd", "all", "any"}

ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
}  # fmt: skip
"""One wrong operator for each; a floor division becomes one that rounds up."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
"""The boundary moved by one, and the comparison turned round."""

FUNCTIONS = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin",
    "sum": "max", "fsum": "max", "prod": "sum", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor",
}  # fmt: skip
"""What a call is mistaken for."""

WITHOUT = {"sorted", "reversed", "abs"}
"""Calls that are left away: their argument stays."""


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        number: its place among the faults of its file.
        function: the qualified name of the function or class it lies in, empty for a module's own lines.
        runs: whether it lies in a function: a module's, a class's and a default's lines run once, at import.
        lines: of the statement's own part: of a compound one its head.
        operator: the kind of fault.
        before: the statement as it is, without the body of a compound one.
        after: the same with the fault.
    """

    number: int
    function: str
    runs: bool
    lines: range
    operator: str
    before: str
    after: str

    def __str__(self) -> str:
        return (
            f"{self.lines.start} {self.function or 'module'} [{self.operator}]\n    - {self.before}\n    + {self.after}"
        )


@dataclass(frozen=True)
class _Place:
    """Where in the tree the walk is."""

    function: str = ""
    statement: ast.stmt | None = None
    runs: bool = False
    bound: frozenset[str] = frozenset()
    returns_bool: bool = False


@dataclass(frozen=True)
class _Fault:
    """A child of a node, and what stands in its place."""

    operator: str
    place: _Place
    parent: ast.AST
    field: str
    position: int | None
    new: ast.AST

    def put(self, node: ast.AST) -> None:
        if self.position is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.position] = node

    @property
    def old(self) -> ast.AST:
        child = getattr(self.parent, self.field)
        return child if self.position is None else child[self.position]


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a file's text, in order."""
    tree = ast.parse(source)
    found = []
    for number, fault in enumerate(_faults(tree)):
        statement, old = fault.place.statement, fault.old
        assert statement is not None
        before = _head(statement)
        fault.put(fault.new)
        after = _head(fault.new if old is statement and isinstance(fault.new, ast.stmt) else statement)
        fault.put(old)
        place = fault.place
        found.append(Mutant(number, place.function, place.runs, _own_lines(statement), fault.operator, before, after))
    return found


def mutated(source: str, number: int) -> ast.Module:
    """The tree of a file's text with the fault of that number in it."""
    tree = ast.parse(source)
    for at, fault in enumerate(_faults(tree)):
        if at == number:
            fault.put(fault.new)
            return ast.fix_missing_locations(tree)
    raise IndexError(number)


def _own_lines(statement: ast.stmt) -> range:
    body = getattr(statement, "body", None)
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    last = body[0].lineno - 1 if isinstance(body, list) else (statement.end_lineno or statement.lineno)
    return range(first, max(last, statement.lineno) + 1)


def _head(statement: ast.AST) -> str:
    """A statement in one line, the body of a compound one left away."""
    if isinstance(getattr(statement, "body", None), list):
        short = deepcopy(statement)
        short.body, short.orelse, short.handlers, short.finalbody = [ast.Pass()], [], [], []  # type: ignore[attr-defined]
        statement = short
    return " ".join(ast.unparse(ast.fix_missing_locations(statement)).removesuffix("pass").split()) or "pass"


def _faults(node: ast.AST, place: _Place = _Place()) -> Iterator[_Fault]:
    """All faults below a node. The walk goes on while a fault is put in and taken out again."""
    for field, value in ast.iter_fields(node):
        if _is_left_out(node, field):
            continue
        children = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for position, child in children:
            if not isinstance(child, ast.AST) or _is_unseen(child) or _is_rest(child, node):
                continue
            inner = _enter(child, place)
            if isinstance(node, ast.FunctionDef):
                inner = replace(inner, runs=field == "body" and not isinstance(child, ast.ClassDef))
            for operator, new in _instead(child, field, inner):
                if inner.statement is not None:
                    yield _Fault(operator, inner, node, field, position, ast.copy_location(new, child))
            if not isinstance(child, ast.Raise):
                yield from _faults(child, inner)
            if isinstance(child, ast.Assign) and all(isinstance(target, ast.Name) for target in child.targets):
                names = {target.id for target in child.targets if isinstance(target, ast.Name)}
                place = replace(place, bound=place.bound | names)


def _is_left_out(node: ast.AST, field: str) -> bool:
    return field in ("annotation", "returns") or (
        isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"
    )


def _is_unseen(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Raise):
        return node.exc is not None and ast.unparse(node.exc).startswith("AssertionError")
    if isinstance(node, ast.FunctionDef):
        return node.name in COSMETIC
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.keyword) and node.arg in UNSEEN_KEYWORDS


def _is_rest(child: ast.AST, parent: ast.AST) -> bool:
    function = parent.func if isinstance(parent, ast.Call) else None
    return isinstance(function, ast.Attribute) and function.attr == "reshape" and ast.unparse(child) == "-1"


def _enter(child: ast.AST, place: _Place) -> _Place:
    if isinstance(child, ast.stmt):
        place = replace(place, statement=child)
    if isinstance(child, ast.FunctionDef | ast.ClassDef):
        place = replace(place, function=".".join(filter(None, (place.function, child.name))))
    if isinstance(child, ast.FunctionDef):
        arguments = [*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs]
        boolean = child.returns is not None and ast.unparse(child.returns) == "bool"
        place = replace(place, bound=frozenset(a.arg for a in arguments), returns_bool=boolean)
    return place


def _instead(node: ast.AST, field: str, place: _Place) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in the place of a node, each with the name of the fault."""
    if isinstance(node, ast.stmt):
        yield from _statements(node, place)
        return
    if field == "test" or field == "ifs":
        plain = node if isinstance(node, ast.expr) else ast.Constant(True)
        if not isinstance(plain, ast.Compare | ast.BoolOp | ast.UnaryOp):
            yield "condition", ast.UnaryOp(ast.Not(), plain)
    match node:
        case ast.BinOp(left, op, right):
            if isinstance(op, ast.FloorDiv):
                yield "arithmetic", ast.UnaryOp(ast.USub(), ast.BinOp(ast.UnaryOp(ast.USub(), left), op, right))
            elif type(op) in ARITHMETIC:
                yield "arithmetic", ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.UnaryOp(ast.Not() | ast.Invert(), operand):
            yield "negation", operand
        case ast.UnaryOp(ast.USub(), operand):
            yield "negation", operand
        case ast.Compare(left, ops, comparators):
            for at, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield "comparison", ast.Compare(left, [*ops[:at], other(), *ops[at + 1 :]], comparators)
        case ast.BoolOp(op, values):
            yield "boolean", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for at in range(len(values)):
                rest = [*values[:at], *values[at + 1 :]]
                yield "dropped operand", rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.Constant(value):
            yield from (("constant", ast.Constant(other)) for other in _other_constants(value))
        case ast.Call():
            yield from _calls(node)


def _other_constants(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
        if value > 0:
            yield value - 1
    elif isinstance(value, float) and isfinite(value):
        yield value * 2 if value else 1.0


def _calls(call: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    function, arguments = call.func, call.args
    name = (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )
    if name in FUNCTIONS:
        other: ast.expr = ast.Name(FUNCTIONS[name], ast.Load())
        if isinstance(function, ast.Attribute):
            other = ast.Attribute(function.value, FUNCTIONS[name], ast.Load())
        yield "function", ast.Call(other, arguments, call.keywords)
    if name in WITHOUT and len(arguments) == 1:
        plain = arguments[0] if name == "abs" else ast.Call(ast.Name("list", ast.Load()), arguments, [])
        yield "function", plain
    for at, keyword in enumerate(call.keywords):
        if keyword.arg is not None and keyword.arg not in UNSEEN_KEYWORDS:
            yield "dropped keyword", ast.Call(function, arguments, [*call.keywords[:at], *call.keywords[at + 1 :]])
    plain_arguments = not any(isinstance(argument, ast.Starred) for argument in arguments[:2])
    if len(arguments) > 1 and plain_arguments and name not in SYMMETRIC:
        first, second, *rest = arguments
        if ast.dump(first) != ast.dump(second):
            yield "swapped arguments", ast.Call(function, [second, first, *rest], call.keywords)


def _statements(statement: ast.stmt, place: _Place) -> Iterator[tuple[str, ast.AST]]:
    match statement:
        case ast.Raise() | ast.AugAssign() | ast.Delete() | ast.Expr(ast.Call()) | ast.Return(None):
            yield "deleted statement", ast.Pass()
        case ast.Assign(targets, _) if all(_is_bound(target, place) for target in targets):
            yield "deleted statement", ast.Pass()
        case ast.Break():
            yield "loop", ast.Continue()
        case ast.Continue():
            yield "loop", ast.Break()
        case ast.Return(value) if value is not None and not (isinstance(value, ast.Constant) and value.value is None):
            if not place.returns_bool:
                yield "return value", ast.Return(ast.Constant(None))
            elif not isinstance(value, ast.Compare):
                yield "return value", ast.Return(ast.UnaryOp(ast.Not(), value))


def _is_bound(target: ast.expr, place: _Place) -> bool:
    """Whether something is left to read when the assignment is gone; a name that is not there fails at once."""
    if isinstance(target, ast.Tuple):
        return all(_is_bound(part, place) for part in target.elts)
    return isinstance(target, ast.Attribute | ast.Subscript) or (
        isinstance(target, ast.Name) and bool(place.function) and target.id in place.bound
    )
