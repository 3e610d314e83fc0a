"""What a GPU does at most in a clock, and what an instruction asks of it."""

import re
from dataclasses import dataclass, field

from .sass import Instruction


@dataclass(frozen=True)
class Device:
    """The ceilings of a GPU; per multiprocessor and clock where nothing else is said."""

    name: str
    multiprocessors: int
    clock: float  # Hz
    schedulers: int  # warp instructions issued
    alu: float  # warp instructions of integers, comparisons and logic
    float64: float  # warp instructions
    mufu: float  # warp instructions of the special function unit
    shared: float  # bytes of shared memory
    tensor: float  # floating point operations a second of 16-bit products, the whole GPU
    bandwidth: float  # bytes a second
    float32: float  # floating point operations a second of products in float32, the whole GPU
    registers: int
    threads: int
    shared_bytes: int
    blocks: int


H200 = Device(
    "H200", 132, 1.755e9, 4, 2, 2, 0.5, 128, 790e12, 4.3e12, 59.3e12, 65536, 2048, 233472, 32
)

# 64 lanes a multiprocessor and clock, half of what is issued.
ALU = {
    "IADD3", "IADD", "LOP3", "LOP", "SHF", "SHL", "SHR", "PRMT", "ISETP", "SEL", "FSEL",
    "FSETP", "FMNMX", "IMNMX", "VIMNMX", "LEA", "PLOP3", "VIADD", "IABS", "FCHK", "BMSK",
    "SGXT", "VABSDIFF", "HMNMX2", "HSETP2", "VIADDMNMX", "VIMNMX3", "CSET", "FSET",
}  # fmt: skip
FLOAT64 = {"DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "DMMA"}
MUFU = {"MUFU", "POPC", "FLO", "BREV"}  # 16 lanes, as conversions from and to 64 bits
CONVERSIONS = re.compile(r"^(F2F|F2I|I2F|FRND)\.\S*(64|F64)")
SHARED = re.compile(r"^(LDS|STS|ATOMS|LDSM|STSM)")
EXCHANGE = {"SHFL", "REDUX"}
SPILL = re.compile(r"^(LDL|STL)")
BARRIER = re.compile(r"^(BAR|SYNCS\.PHASECHK)")
# Of Blackwell's, UTCHMMA, the shape is in a register: they are counted, not their operations.
PRODUCT = re.compile(r"^(HGMMA|[HIQ]MMA|UTC\w*MMA)")


@dataclass
class Count:
    """Warp instructions, or bytes and operations that they ask for; sums over the warps."""

    issue: float = 0.0
    alu: float = 0.0
    float64: float = 0.0
    mufu: float = 0.0
    tensor_instructions: float = 0.0
    tensor: float = 0.0  # floating point operations
    shared: float = 0.0  # bytes
    spills: float = 0.0
    barriers: float = 0.0
    memory: float = field(default=0.0)  # instructions on global memory

    def add(self, instruction: Instruction, times: float) -> None:
        """An instruction that a warp executes so many times."""
        name, opcode = instruction.name, instruction.opcode
        self.issue += times
        self.alu += times * (name in ALU)
        self.float64 += times * (name in FLOAT64)
        self.mufu += times * (name in MUFU or CONVERSIONS.match(opcode) is not None)
        self.spills += times * (SPILL.match(opcode) is not None)
        self.barriers += times * (BARRIER.match(opcode) is not None)
        self.memory += times * (name in ("LDG", "STG", "LD", "ST", "RED", "ATOMG", "ATOM"))
        if SHARED.match(opcode):
            self.shared += times * 128 * _words(opcode)
        elif name in EXCHANGE:
            self.shared += times * 128
        operations, read = _product(instruction)
        self.tensor += times * operations
        self.tensor_instructions += times * (PRODUCT.match(opcode) is not None)
        self.shared += times * read

    def plus(self, other: "Count", times: float = 1.0) -> None:
        """Another count joins, so many times."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)


def _words(opcode: str) -> int:
    width = re.search(r"\.(64|128)\b", opcode)
    if opcode.startswith(("LDSM", "STSM")):
        matrices = re.search(r"\.(\d)\b|M88\.(\d)", opcode)
        return int(next(filter(None, matrices.groups()))) if matrices else 1
    return int(width[1]) // 32 if width else 1


def _product(instruction: Instruction) -> tuple[float, float]:
    """Floating point operations of one warp's part of a matrix instruction, and the bytes of shared
    memory that it reads for itself.
    """
    if shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", instruction.opcode):
        m, n, k = map(int, shape.groups())
        operands = [x.strip() for x in instruction.operands.split(",")]
        from_shared = sum(x.startswith("gdesc") for x in operands) >= 1
        both = from_shared and not re.match(r"R\d+", operands[1] if len(operands) > 1 else "")
        # 16-bit elements; a group of four warps reads its operands once
        read = n * k * 2 + (m * k * 2 if both else 0)
        return 2.0 * m * n * k / 4, read / 4
    if shape := re.match(r"(?:HMMA|IMMA|QMMA)\.(\d{2})(\d)(\d+)", instruction.opcode):
        m, n, k = (int(x) for x in shape.groups())
        return 2.0 * m * n * k, 0.0
    return 0.0, 0.0


def limits(count: Count, moved: float, blocks: int, device: Device) -> dict[str, float]:
    """Seconds that each unit of the device needs at least; ``count`` is of the whole grid, whose
    blocks run on as many multiprocessors at most.
    """
    each = min(device.multiprocessors, blocks) * device.clock
    return {
        "issue": count.issue / (device.schedulers * each),
        "alu": count.alu / (device.alu * each),
        "float64": count.float64 / (device.float64 * each),
        "mufu": count.mufu / (device.mufu * each),
        "shared": count.shared / (device.shared * each),
        "tensor": count.tensor / device.tensor,
        "bytes": moved / device.bandwidth,
    }


def resident(device: Device, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks that a multiprocessor holds at once."""
    by_register = device.registers // (max(-(-registers // 8) * 8, 1) * threads)
    by_shared = device.shared_bytes // (shared_bytes + 1024)
    return min(by_register, by_shared, device.threads // threads, device.blocks)
