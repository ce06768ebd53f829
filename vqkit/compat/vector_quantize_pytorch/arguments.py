"""What the classes say of arguments: that they do not fit, or that there is no such thing here."""


def check(fits: object, message: str) -> None:
    if not fits:
        raise ValueError(message)


def expect(supported: object, message: str) -> None:
    if not supported:
        raise NotImplementedError(message)
