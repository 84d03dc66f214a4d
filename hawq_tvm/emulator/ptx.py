"""Inline PTX of a kernel's text becomes calls of the functions in ``cpp/ptx.h``.

TVM writes one instruction a statement, at most with a predicate around it::

    asm volatile("{ .reg .pred p; setp.ne.b32 p, %1, 0; @p ld.global.nc.b32 %0, [%2]; }"
                 : "+r"(value) : "r"(wanted), "l"(address) : "memory");

`INSTRUCTIONS` lists what is known, by NVIDIA's "Parallel Thread Execution ISA"; an error names anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hawq_tvm.core.errors import EmulatorError

_ASM = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OPERAND = re.compile(r'"(?P<constraint>[^"]*)"\s*\(')
_STATEMENT = re.compile(r"(?:@(?P<negated>!?)(?P<guard>\w+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*)", re.DOTALL)
_ADDRESS = re.compile(r"\[\s*(?P<base>[%\w]+)\s*(?:\+\s*(?P<offset>-?\d+))?\s*\]")

_C_TYPES = {
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    "f32": "float",
    "f64": "double",
    "pred": "bool",
}


def translate_assembly(text: str) -> str:
    """CUDA C++ with every inline assembly statement replaced by C++ on the same lines.

    Raises:
        EmulatorError: an instruction that the emulator does not know.
    """
    parts, end = [], 0
    for match in _ASM.finditer(text):
        if match.start() < end or _in_comment(text, match.start()):
            continue
        close = closing(text, match.end() - 1)
        parts += [text[end : match.start()], _statement(text[match.end() : close])]
        end = close + 1
    return "".join([*parts, text[end:]])


def closing(text: str, opening: int) -> int:
    """Where the bracket closes that opens there; brackets within strings, character literals and comments do not count.

    Raises:
        EmulatorError: it never does.
    """
    pairs = {"(": ")", "[": "]", "{": "}"}
    expected = []
    for match in _TOKENS.finditer(text, opening):
        token = match.group()
        if token in pairs:
            expected.append(pairs[token])
        elif token in pairs.values():
            if expected.pop() != token:
                break
            if not expected:
                return match.start()
    raise EmulatorError(f"the CUDA text has a bracket without its partner: {text[opening : opening + 60]!r}")


_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|//[^\n]*|/\*.*?\*/|[()\[\]{}]', re.DOTALL)


def split_at(text: str, separator: str) -> list[str]:
    """The parts between separators that are outside of brackets and strings."""
    parts, begin, position = [], 0, 0
    while position < len(text):
        character = text[position]
        if character in "([{":
            position = closing(text, position)
        elif character == '"':
            found = _STRING.match(text, position)
            assert found, "a string that does not end"
            position = found.end() - 1
        elif character == separator:
            parts.append(text[begin:position])
            begin = position + 1
        position += 1
    return [*parts, text[begin:]]


def _in_comment(text: str, position: int) -> bool:
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return "//" in line or line.lstrip().startswith("#")


def _statement(body: str) -> str:
    """C++ for what stands between asm's parentheses: template, outputs, inputs, clobbers."""
    template, *sections = split_at(body, ":")
    code = "".join(found.group(1) for found in _STRING.finditer(template))
    code = code.replace("\\n", "\n").replace("\\t", " ").strip()
    operands = [operand for section in sections[:2] for operand in _operands(section)]
    return _block(code, operands)


def _operands(section: str) -> list[str]:
    found, position = [], 0
    while match := _OPERAND.search(section, position):
        position = closing(section, match.end() - 1)
        found.append(section[match.end() : position])
    return found


def _block(code: str, operands: Sequence[str]) -> str:
    if code.startswith("{") and code.endswith("}"):
        code = code[1:-1]
    statements = [line for line in (part.strip() for part in split_at(code, ";")) if line]
    return "{ " + " ".join(_instruction(statement, operands) for statement in statements) + " }"


def _instruction(statement: str, operands: Sequence[str]) -> str:
    if declared := re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement):
        kind, names = declared.groups()
        if kind not in _C_TYPES:
            raise _unknown(statement)
        return f"{_C_TYPES[kind]} {names};"
    match = _STATEMENT.fullmatch(statement)
    if not match:
        raise _unknown(statement)
    values = [_Operand(part, operands) for part in split_at(match["operands"], ",") if part.strip()]
    for pattern, write in INSTRUCTIONS:
        if found := re.fullmatch(pattern, match["opcode"]):
            call = write(found, values)
            guard = match["guard"]
            return f"if ({match['negated'] or ''}{guard}) {{ {call} }}" if guard else call
    raise _unknown(statement)


def _unknown(statement: str) -> EmulatorError:
    opcode = statement.split()[0] if statement.split() else statement
    return EmulatorError(
        f"the emulator does not know the PTX instruction '{opcode}' ({statement}); INSTRUCTIONS in "
        "hawq_tvm/emulator/ptx.py lists those it knows"
    )


class _Operand:
    """An operand of an instruction: a register or number, an address, or a vector of registers in braces."""

    def __init__(self, text: str, operands: Sequence[str]) -> None:
        self._text = text.strip()
        self._operands = operands

    @property
    def value(self) -> str:
        """C++ expression; that of a register can be assigned to."""
        if self._text.startswith("%"):
            return f"({self._operands[int(self._text[1:])]})"
        return self._text

    @property
    def words(self) -> list[str]:
        """The registers of a vector; a single register is a vector of one."""
        inner = self._text[1:-1] if self._text.startswith("{") else self._text
        return [_Operand(part, self._operands).value for part in inner.split(",")]

    @property
    def address(self) -> str:
        match = _ADDRESS.fullmatch(self._text)
        if not match:
            raise EmulatorError(f"the emulator does not know the PTX address '{self._text}'")
        base, offset = _Operand(match["base"], self._operands).value, match["offset"] or "0"
        return f"emulator::address({base}, {offset})"


_Write = Callable[[re.Match[str], list[_Operand]], str]


def _put(registers: Sequence[str], source: str, member: str) -> str:
    return " ".join(f"emulator::put({register}, {source}.{member}[{i}]);" for i, register in enumerate(registers))


def _load(match: re.Match[str], operands: list[_Operand]) -> str:
    registers, source = operands[0].words, operands[1].address
    function = "load_shared" if match["space"].startswith("shared") else "load"
    c_type = _C_TYPES[match["type"]]
    return f"const auto loaded = emulator::{function}<{c_type}, {len(registers)}>({source}); " + _put(
        registers, "loaded", "element"
    )


def _store(match: re.Match[str], operands: list[_Operand]) -> str:
    values, destination = operands[1].words, operands[0].address
    function = "store_shared" if match["space"].startswith("shared") else "store"
    c_type = _C_TYPES[match["type"]]
    listed = ", ".join(f"emulator::get<{c_type}>({value})" for value in values)
    vector = f"emulator::Vector<{c_type}, {len(values)}>{{{{{listed}}}}}"
    return f"emulator::{function}<{c_type}, {len(values)}>({destination}, {vector});"


_SHAPES = {(8, 16, 8), (16, 16, 8), (16, 32, 8), (8, 32, 4), (16, 32, 4), (16, 64, 4)}
"""Rows, depth and bits of the integer forms of mma.sync: "Multiply-and-Accumulate Instruction: mma"."""


def _mma(match: re.Match[str], operands: list[_Operand]) -> str:
    rows, depth, bits = int(match["m"]), int(match["k"]), int(match["abits"])
    if (rows, depth, bits) not in _SHAPES or match["bbits"] != match["abits"]:
        raise EmulatorError(f"mma.sync has no form {match.group()}")
    d, a, b, c = (operand.words for operand in operands)
    halves = rows // 8
    blocks = depth * bits // 128
    if [len(d), len(a), len(b), len(c)] != [2 * halves, halves * blocks, blocks, 2 * halves]:
        raise EmulatorError(f"{match.group()} with {len(d)}, {len(a)}, {len(b)} and {len(c)} registers")
    signs = ", ".join("true" if match[name] == "s" else "false" for name in ("asign", "bsign"))
    form = f"{{{rows}, {depth}, {bits}, {signs}}}"
    registers = ", ".join("{" + ", ".join(f"emulator::get<uint32_t>({x})" for x in part) + "}" for part in (a, b, c))
    return f"const auto product = emulator::mma_sync({form}, {{{registers}}}); " + _put(d, "product", "word")


def _ldmatrix(match: re.Match[str], operands: list[_Operand]) -> str:
    registers = operands[0].words
    if len(registers) != int(match["count"]):
        raise EmulatorError(f"{match.group()} with {len(registers)} registers")
    transposed = "true" if match["trans"] else "false"
    call = f"emulator::ldmatrix({match['count']}, {transposed}, {operands[1].address})"
    return f"const auto loaded = {call}; " + _put(registers, "loaded", "word")


def _cp_async(match: re.Match[str], operands: list[_Operand]) -> str:
    source_bytes = operands[3].value if len(operands) > 3 else operands[2].value
    source = f"reinterpret_cast<const void*>({operands[1].address})"
    return f"emulator::cp_async({operands[0].address}, {source}, {operands[2].value}, {source_bytes});"


def _call(template: str) -> _Write:
    """A statement; ``{0}`` is the first operand, ``{u1}`` the second as uint32_t, ``{s1}`` as int32_t, ``{f1}`` float;
    ``<name>`` is a group of the opcode's pattern.
    """

    def write(match: re.Match[str], operands: list[_Operand]) -> str:
        names = {"u": "uint32_t", "s": "int32_t", "f": "float"}

        def operand(found: re.Match[str]) -> str:
            value = operands[int(found[2])].value
            return f"emulator::get<{names[found[1]]}>({value})" if found[1] else value

        text = re.sub(r"\{([usf]?)(\d)\}", operand, template)
        return re.sub(r"<(\w+)>", lambda found: match[found[1]] if found[1] in match.groupdict() else found[0], text)

    return write


def _typed(expression: str) -> _Write:
    """``d = expression``, whose operands ``a``, ``b`` and ``c`` are of the instruction's type."""

    def write(match: re.Match[str], operands: list[_Operand]) -> str:
        c_type = _C_TYPES[match["type"]]
        declared = "".join(
            f"const {c_type} {name} = emulator::get<{c_type}>({operand.value}); "
            for name, operand in zip("abc", operands[1:], strict=False)
        )
        return f"{{ {declared}emulator::put({operands[0].value}, {expression}); }}"

    return write


def _compare(match: re.Match[str], operands: list[_Operand]) -> str:
    sign = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}[match["compare"]]
    c_type = _C_TYPES[match["type"]]
    left, right = (f"emulator::get<{c_type}>({operand.value})" for operand in operands[1:3])
    return f"{operands[0].value} = {left} {sign} {right};"


_CACHE = r"(?:\.(?:nc|ca|cg|cs|lu|cv|wb|wt|volatile|weak|L1::\w+|L2::\w+))*"
_SPACE = r"\.(?P<space>global|shared(?:::cta)?)"
_TYPE = r"\.(?P<type>[bsuf]\d+)"
_INTEGER = r"\.(?P<type>[su](?:32|64))"

INSTRUCTIONS: tuple[tuple[str, _Write], ...] = (
    # Data movement
    (rf"ld{_CACHE}{_SPACE}{_CACHE}(?:\.v[24])?{_TYPE}", _load),
    (rf"st{_CACHE}{_SPACE}{_CACHE}(?:\.v[24])?{_TYPE}", _store),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared(?:::cta)?\.b16", _ldmatrix),
    (r"cp\.async\.c[ag]\.shared(?:::cta)?\.global(?:\.L2::\w+)?", _cp_async),
    (r"cp\.async\.commit_group", _call("emulator::cp_async_commit_group();")),
    (r"cp\.async\.wait_group", _call("emulator::cp_async_wait_group({0});")),
    (r"cp\.async\.wait_all", _call("emulator::cp_async_wait_all();")),
    (r"mov\.[bsu]32", _call("emulator::put({0}, {u1});")),
    (r"prmt\.b32", _call("emulator::put({0}, emulator::permute_bytes({u1}, {u2}, {u3}));")),
    (r"selp\.[bsu]32", _call("emulator::put({0}, {3} ? {u1} : {u2});")),
    (rf"setp\.(?P<compare>eq|ne|lt|le|gt|ge){_TYPE}", _compare),
    # Matrices and meetings
    (
        r"mma\.sync\.aligned\.m(?P<m>\d+)n8k(?P<k>\d+)\.row\.col\.s32"
        r"\.(?P<asign>[us])(?P<abits>[48])\.(?P<bsign>[us])(?P<bbits>[48])\.s32",
        _mma,
    ),
    (r"(?:bar|barrier)\.sync(?:\.aligned)?", _call("emulator::named_barrier({u0});")),
    (r"bar\.warp\.sync", _call("emulator::warp_barrier({u0});")),
    # Integer arithmetic; the sums and products of the GPU wrap around
    (rf"mul\.lo{_INTEGER}", _typed("a * b")),
    (rf"mul\.hi{_INTEGER}", _typed("emulator::multiply_high(a, b)")),
    (r"mul\.wide\.(?P<type>[su]32)", _typed("emulator::multiply_wide(a, b)")),
    (rf"mad\.lo{_INTEGER}", _typed("a * b + c")),
    (rf"mad\.hi{_INTEGER}", _typed("emulator::multiply_high(a, b) + c")),
    (rf"add{_INTEGER}", _typed("a + b")),
    (rf"sub{_INTEGER}", _typed("a - b")),
    (rf"min{_INTEGER}", _typed("std::min(a, b)")),
    (rf"max{_INTEGER}", _typed("std::max(a, b)")),
    (r"lop3\.b32", _call("emulator::put({0}, emulator::look_up_bits({u1}, {u2}, {u3}, {4}));")),
    (
        r"shf\.(?P<side>[lr])\.(?P<mode>wrap|clamp)\.b32",
        _call(
            "emulator::put({0}, emulator::funnel_shift(\"<side>\"[0] == 'l', \"<mode>\"[0] == 'c', {u1}, {u2}, {u3}));"
        ),
    ),
    (r"bfe\.(?P<type>[su]32)", _typed("emulator::extract_bits(a, b, c)")),
    (
        r"dp4a\.(?P<a>[su])32\.(?P<b>[su])32",
        _call("emulator::put({0}, emulator::dot_bytes<emulator::Byte_<a>, emulator::Byte_<b>>({u1}, {u2}, {u3}));"),
    ),
    # Conversions and floats, each rounded once
    (
        r"cvt\.pack\.sat\.(?P<sign>[su])(?P<bits>[48])\.s32\.b32",
        _call("emulator::put({0}, emulator::pack_saturated({s1}, {s2}, {u3}, <bits>, \"<sign>\"[0] == 's'));"),
    ),
    (r"cvt\.rni\.s32\.f32", _call("emulator::put({0}, emulator::to_int(std::nearbyint({f1})));")),
    (r"cvt\.rmi\.s32\.f32", _call("emulator::put({0}, emulator::to_int(std::floor({f1})));")),
    (r"cvt\.rzi\.s32\.f32", _call("emulator::put({0}, emulator::to_int({f1}));")),
    (r"cvt\.rn\.f32\.s32", _call("emulator::put({0}, static_cast<float>({s1}));")),
    (r"fma\.rn\.f32", _call("emulator::put({0}, std::fma({f1}, {f2}, {f3}));")),
)
"""Opcode and what writes the C++ for it. The first that fits is taken."""
