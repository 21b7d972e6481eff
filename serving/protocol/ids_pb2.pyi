from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeatureIds(_message.Message):
    __slots__ = ("feature", "int64_ids", "string_ids")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    INT64_IDS_FIELD_NUMBER: _ClassVar[int]
    STRING_IDS_FIELD_NUMBER: _ClassVar[int]
    feature: str
    int64_ids: bytes
    string_ids: StringIds
    def __init__(self, feature: _Optional[str] = ..., int64_ids: _Optional[bytes] = ..., string_ids: _Optional[_Union[StringIds, _Mapping]] = ...) -> None: ...

class StringIds(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...
