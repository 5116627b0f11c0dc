"""Every error has an errno for the mount's callers and an exit code for the command's."""

import errno

import pytest

from cedanafs import errors
from cedanafs.cli.common import EXIT_CODES, exit_code
from cedanafs.errors import CedanaFsError, CriuError, StoreError, the_error
from cedanafs.fs.errnos import ERRNO_OF, errno_of


def subclasses(kind: type[CedanaFsError]) -> set[type[CedanaFsError]]:
    below = {each for each in kind.__subclasses__() if each.__module__ == errors.__name__}
    return below.union(*(subclasses(each) for each in below))


ALL = sorted(subclasses(CedanaFsError), key=lambda kind: kind.__name__)


def test_every_error_has_an_errno() -> None:
    assert set(ERRNO_OF) == {CedanaFsError, *ALL}
    assert all(number in errno.errorcode for number in ERRNO_OF.values())


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_an_exit_code(kind: type[CedanaFsError]) -> None:
    assert exit_code(kind("what is wrong")) in EXIT_CODES.values()
    assert errno_of(kind("what is wrong")) == ERRNO_OF[kind]


def test_exit_codes_are_told_apart() -> None:
    assert sorted(EXIT_CODES.values()) == [2, 3, 4, 5, 6]
    assert exit_code(CedanaFsError()) == 1
    assert exit_code(ValueError()) == 1
    assert exit_code(KeyboardInterrupt()) == 130
    assert exit_code(OSError(errno.EIO, "a directory in the store", "/store/x")) == 4
    assert exit_code(OSError("no file's")) == 1


def test_the_store_s_own_errno_is_passed_on() -> None:
    assert errno_of(StoreError("full", os_errno=errno.ENOSPC)) == errno.ENOSPC
    assert errno_of(OSError(errno.EDQUOT, "quota")) == errno.EDQUOT
    assert errno_of(OSError("without a number")) == errno.EIO
    # That would say that we are gone.
    assert errno_of(StoreError("s3fs is gone", os_errno=errno.ENOTCONN)) == errno.EIO


def test_the_error_that_matters_of_a_group() -> None:
    ours, other = CriuError("it failed"), ValueError("a consequence")
    nested = BaseExceptionGroup("", [other, BaseExceptionGroup("", [KeyboardInterrupt(), ours])])
    assert the_error(nested) is ours
    assert the_error(ExceptionGroup("", [other])) is other
    assert the_error(ours) is ours
