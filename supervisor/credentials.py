"""Recognise secrets by the names of options and variables, and by their places in headers and URLs. Pure.

All patterns are bounded, so that no line of a log takes more than a time in proportion to its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

MASK: Final = "***"

# Options whose value is a secret by name, wherever the value came from.
_NAME: Final = (
    r"(?:(?:[\w-]{0,64}[-_])?(?:(?:api|access|secret)[-_]?keys?|token|secret)|[\w-]{0,64}passw(?:or)?d|--?key)"
)
_SECRET_NAME: Final = re.compile(rf"(?i)(?<![\w-]){_NAME}$")
# In an environment, a plain KEY means a secret too. Not PWD, which is a directory.
_SECRET_VARIABLE: Final = re.compile(
    r"(?i)(?:^|_)(?:(?:API|ACCESS|SECRET|PRIVATE)?_?KEYS?|TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|PASS|CREDENTIALS?)$"
)
# The same inside of one argument: a header, a shell's script, JSON, a query. The value is the second group.
_VALUE: Final = r"""("[^"]*"|'[^']*'|[^\s"',;&]+)"""
_EMBEDDED: Final = (
    re.compile(rf"""(?i)((?<![\w-]){_NAME}(?:["']?\s{{0,8}}[=:]\s{{0,8}}(?:bearer\s{{1,8}})?)){_VALUE}"""),
    re.compile(rf"(?i)((?<![\w-])(?=-){_NAME}\s{{1,8}}){_VALUE}"),
    re.compile(r"""(?i)(\bbearer\s{1,8})([^\s"',;&]+)"""),
)

_WORD: Final = r"""[^\s"'`,;<>\\]"""
# Authorization: Basic dXNlcjpwYXNz; 'authorization': 'Bearer abc'; ("authorization", "Bearer abc"); also JSON-escaped.
# Without a scheme only what looks like a key, because logs hold sentences such as "authorization: required".
# Schemes whose value has many parts, some of them quoted: all of the line, or of the text in quotes, goes.
_PARTS: Final = r"(?:digest|hawk|oauth|aws4-hmac-sha256|scram-[\w-]{1,16})\b"
_BEFORE: Final = r"""authorization \\?["']? \s{0,8} (?:[:=]|(?<=["']),) \s{0,8} \[? b? \\?["']?"""
_HEADER: Final = re.compile(
    rf"""(?ix)
    ( {_BEFORE} )
    ( (?:basic|bearer|negotiate|ntlm|dpop|token|(?:api-?)?key) \s{{1,8}} )?
    ( (?(2) {_WORD}{{1,4096}} | (?! {_PARTS}) (?={_WORD}{{0,256}}\d) {_WORD}{{8,4096}} ) )"""
)
_HEADER_IN_PARTS: Final = re.compile(
    rf"""(?ix)
    ( {_BEFORE} {_PARTS} \s{{1,8}} )
    ( (?: [^\r\n"'\\\]] | (?<==)"[^"\r\n]{{0,1024}}" ){{1,4096}} )"""
)
_BEARER: Final = re.compile(rf"(?i)(\bbearer\s{{1,8}})((?={_WORD}{{0,256}}\d){_WORD}{{8,4096}})")
_QUERY: Final = re.compile(
    r"""(?i)([?&;](?:[\w.-]{0,64}[-_.])?(?:key|apikey|token|secret|password|passwd|signature|sig)=)([^\s"'`&#<>\\]{1,4096})"""
)
_USER_INFO: Final = re.compile(r"""(://[^\s/:@"'?#]{0,256}:)([^\s/@"'?#]{1,1024})(?=@)""")
# What a cut may have left of them at the end of a text; a port is no password.
_CUT_BEARER: Final = re.compile(rf"(?i)(\bbearer\s{{1,8}})({_WORD}{{1,4096}})\Z")
_CUT_USER_INFO: Final = re.compile(r"""(://[^\s/:@"'?#]{0,256}:)((?!\d{1,5}\Z)[^\s/@"'?#]{1,1024})\Z""")


def is_secret_name(name: str) -> bool:
    """Whether an option or variable of this name holds a secret (`--api-key`, `HF_TOKEN`, ...)."""
    return _SECRET_NAME.search(name) is not None


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name holds a secret: as above, or it ends in KEY, PASS and such."""
    return is_secret_name(name) or _SECRET_VARIABLE.search(name) is not None


def values_in(argv: Sequence[str]) -> Iterator[str]:
    """What stands as a secret in a command line, as far as names and `Bearer` tell."""
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        option, equals, value = arg.partition("=")
        if _has_value(option, equals):
            # An option that follows is no value: the one before it is a switch.
            yield value if equals else "" if following.startswith("-") else following
        for pattern in _EMBEDDED:
            for match in pattern.finditer(arg):
                yield match[2].strip("\"'")


def mask_argv(argv: Sequence[str]) -> Iterator[str]:
    """A command line without the values of options and variables that name a secret."""
    mask_next = False
    for arg in argv:
        option, equals, _ = arg.partition("=")
        if mask_next:
            yield MASK
            mask_next = False
        elif _has_value(option, equals):
            yield f"{option}={MASK}" if equals else option
            mask_next = not equals
        else:
            for pattern in _EMBEDDED:
                arg = pattern.sub(_mask_value, arg)  # noqa: PLW2901  masked by one pattern after the other
            yield arg


def mask_places(text: str, *, is_cut: bool = False) -> str:
    """Text without what stands where secrets stand: in `Authorization`, after `Bearer`, in a URL's query and user part.

    Args:
        text: of a log, an error or an answer.
        is_cut: the end of the text was cut off, so that only the beginning of a secret may stand there.
    """
    # Plain searches first: most lines hold none of these, and a pattern takes twenty times as long.
    if "=" in text and ("?" in text or "&" in text):
        text = _QUERY.sub(rf"\1{MASK}", text)
    if "@" in text:
        text = _USER_INFO.sub(rf"\1{MASK}", text)
    if "uthorization" in text or "UTHORIZATION" in text:  # the first letter may be large or small
        text = _HEADER.sub(rf"\1\2{MASK}", _HEADER_IN_PARTS.sub(rf"\1{MASK}", text))
    if "earer " in text or "EARER " in text:
        text = _BEARER.sub(rf"\1{MASK}", text)
    if is_cut:
        text = _CUT_BEARER.sub(rf"\1{MASK}", _CUT_USER_INFO.sub(rf"\1{MASK}", text))
    return text


def _has_value(option: str, equals: str) -> bool:
    one_word = not any(map(str.isspace, option))
    return one_word and bool(equals or option.startswith("-")) and is_secret_name(option)


def _mask_value(match: re.Match[str]) -> str:
    quote_mark = match[2][0] if match[2][0] in "\"'" else ""
    return f"{match[1]}{quote_mark}{MASK}{quote_mark}"
