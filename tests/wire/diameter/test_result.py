"""Names of result codes, beside those that another stack has for them."""

from diameter.message import constants

from eir.wire.diameter import result


def test_each_name_is_of_its_code():
    codes = {name: value for name, value in vars(result).items() if isinstance(value, int)}
    assert codes == {name: getattr(constants, f"E_RESULT_CODE_DIAMETER_{name}") for name in codes}
    assert len(result.NAMES) == len(codes) > 30
