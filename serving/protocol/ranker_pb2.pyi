from multifacet.serving.protocol import ids_pb2 as _ids_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RankRequest(_message.Message):
    __slots__ = ("version", "request_id", "num_candidates", "request_features", "candidate_features", "dense", "sequences", "request_lists", "candidate_lists")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FEATURES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    DENSE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_LISTS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_LISTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    request_id: str
    num_candidates: int
    request_features: _containers.RepeatedCompositeFieldContainer[_ids_pb2.FeatureIds]
    candidate_features: _containers.RepeatedCompositeFieldContainer[_ids_pb2.FeatureIds]
    dense: bytes
    sequences: _containers.RepeatedCompositeFieldContainer[_ids_pb2.FeatureIds]
    request_lists: _containers.RepeatedCompositeFieldContainer[FeatureIdLists]
    candidate_lists: _containers.RepeatedCompositeFieldContainer[FeatureIdLists]
    def __init__(self, version: _Optional[str] = ..., request_id: _Optional[str] = ..., num_candidates: _Optional[int] = ..., request_features: _Optional[_Iterable[_Union[_ids_pb2.FeatureIds, _Mapping]]] = ..., candidate_features: _Optional[_Iterable[_Union[_ids_pb2.FeatureIds, _Mapping]]] = ..., dense: _Optional[bytes] = ..., sequences: _Optional[_Iterable[_Union[_ids_pb2.FeatureIds, _Mapping]]] = ..., request_lists: _Optional[_Iterable[_Union[FeatureIdLists, _Mapping]]] = ..., candidate_lists: _Optional[_Iterable[_Union[FeatureIdLists, _Mapping]]] = ...) -> None: ...

class FeatureIdLists(_message.Message):
    __slots__ = ("ids", "lengths")
    IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    ids: _ids_pb2.FeatureIds
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Union[_ids_pb2.FeatureIds, _Mapping]] = ..., lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class RankAnswer(_message.Message):
    __slots__ = ("version", "request_id", "ctr", "cvr", "phases", "num_unknown_ids", "without_tables")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CTR_FIELD_NUMBER: _ClassVar[int]
    CVR_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_IDS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_TABLES_FIELD_NUMBER: _ClassVar[int]
    version: str
    request_id: str
    ctr: _containers.RepeatedScalarFieldContainer[float]
    cvr: _containers.RepeatedScalarFieldContainer[float]
    phases: Phases
    num_unknown_ids: int
    without_tables: bool
    def __init__(self, version: _Optional[str] = ..., request_id: _Optional[str] = ..., ctr: _Optional[_Iterable[float]] = ..., cvr: _Optional[_Iterable[float]] = ..., phases: _Optional[_Union[Phases, _Mapping]] = ..., num_unknown_ids: _Optional[int] = ..., without_tables: _Optional[bool] = ...) -> None: ...

class Phases(_message.Message):
    __slots__ = ("prepare_us", "assemble_us", "lookup_wait_us", "decode_us", "upper_us", "total_us", "lookup_us", "lookup_server_us", "pooling_us")
    PREPARE_US_FIELD_NUMBER: _ClassVar[int]
    ASSEMBLE_US_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    UPPER_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_US_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_SERVER_US_FIELD_NUMBER: _ClassVar[int]
    POOLING_US_FIELD_NUMBER: _ClassVar[int]
    prepare_us: int
    assemble_us: int
    lookup_wait_us: int
    decode_us: int
    upper_us: int
    total_us: int
    lookup_us: int
    lookup_server_us: int
    pooling_us: int
    def __init__(self, prepare_us: _Optional[int] = ..., assemble_us: _Optional[int] = ..., lookup_wait_us: _Optional[int] = ..., decode_us: _Optional[int] = ..., upper_us: _Optional[int] = ..., total_us: _Optional[int] = ..., lookup_us: _Optional[int] = ..., lookup_server_us: _Optional[int] = ..., pooling_us: _Optional[int] = ...) -> None: ...

class RankerDescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RankerDescription(_message.Message):
    __slots__ = ("versions", "current_version", "max_candidates", "max_sequence_ids")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[RankerVersion]
    current_version: str
    max_candidates: int
    max_sequence_ids: int
    def __init__(self, versions: _Optional[_Iterable[_Union[RankerVersion, _Mapping]]] = ..., current_version: _Optional[str] = ..., max_candidates: _Optional[int] = ..., max_sequence_ids: _Optional[int] = ...) -> None: ...

class RankerVersion(_message.Message):
    __slots__ = ("version", "id_features", "dense_features", "sequences")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FEATURES_FIELD_NUMBER: _ClassVar[int]
    DENSE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    version: str
    id_features: _containers.RepeatedCompositeFieldContainer[FeatureDescription]
    dense_features: _containers.RepeatedScalarFieldContainer[str]
    sequences: _containers.RepeatedCompositeFieldContainer[SequenceDescription]
    def __init__(self, version: _Optional[str] = ..., id_features: _Optional[_Iterable[_Union[FeatureDescription, _Mapping]]] = ..., dense_features: _Optional[_Iterable[str]] = ..., sequences: _Optional[_Iterable[_Union[SequenceDescription, _Mapping]]] = ...) -> None: ...

class SequenceDescription(_message.Message):
    __slots__ = ("feature", "id_type", "length")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    ID_TYPE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    feature: str
    id_type: str
    length: int
    def __init__(self, feature: _Optional[str] = ..., id_type: _Optional[str] = ..., length: _Optional[int] = ...) -> None: ...

class FeatureDescription(_message.Message):
    __slots__ = ("feature", "id_type", "list_length")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    ID_TYPE_FIELD_NUMBER: _ClassVar[int]
    LIST_LENGTH_FIELD_NUMBER: _ClassVar[int]
    feature: str
    id_type: str
    list_length: int
    def __init__(self, feature: _Optional[str] = ..., id_type: _Optional[str] = ..., list_length: _Optional[int] = ...) -> None: ...
