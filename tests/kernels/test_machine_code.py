"""The disassembly's reader on code short enough to count by hand."""

from pathlib import Path

import pytest

# Two loops, one in the other, and a wait at the end that jumps back into both.
CODE = """
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;  /* 0x00000a0000017a02 */
                                                                            /* 0x000fe40000000f00 */
        /*0010*/                   STL [R1], R2 ;
        /*0020*/                   FADD R3, R3, R4 ;
        /*0030*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R5], R6 ;
        /*0040*/              @!P0 BRA 0x00d0 ;
        /*0050*/                   HGMMA.64x128x16.F32.BF16 R24, R92, gdesc[UR16], R24, gsb0 ;
        /*0060*/               @P1 BRA 0x0030 ;
        /*0070*/                   FMNMX R3, R3, R24, PT ;
        /*0080*/                   LDL R2, [R1] ;
        /*0090*/              @!P2 BRA 0x0020 ;
        /*00a0*/                   LDL R2, [R1] ;
        /*00b0*/                   EXIT ;
        /*00c0*/                   NOP ;
        /*00d0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R5], R6 ;
        /*00e0*/              @!P0 BRA 0x00d0 ;
        /*00f0*/                   BRA 0x0050 ;
        /*0100*/                   BRA 0x0100 ;
"""


@pytest.fixture
def machine_code(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import machine_code

    return machine_code


def test_loops_are_found_by_control_flow(machine_code):
    flow = machine_code.Flow(machine_code.parse(CODE))
    loop = flow.tensor_loop()
    assert [i.address for i in loop.outside] == [0x20, 0x70, 0x80, 0x90]
    assert [i.address for i in loop.inner] == [0x30, 0x40, 0x50, 0x60, 0xD0, 0xE0, 0xF0]
    # Four chunks, each a turn of the inner loop.
    assert loop.kinds(4) == {"tensor": 4, "select": 1, "memory": 1, "control": 25, "arithmetic": 1}
    with pytest.raises(ValueError, match="inner loop for several chunks only"):
        loop.kinds(1)


def test_spills_are_told_from_reloads_in_a_loop(machine_code):
    instructions = machine_code.parse(CODE)
    flow = machine_code.Flow(instructions)
    repeated = {i.address: flow.repeats(i) for i in machine_code.local_accesses(instructions)}
    assert repeated == {0x10: False, 0x80: True, 0xA0: False}
