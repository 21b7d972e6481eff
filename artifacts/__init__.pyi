from .artifact import Artifact as Artifact
from .artifact import ArtifactError as ArtifactError
from .artifact import ArtifactWriter as ArtifactWriter
from .artifact import remove_stale_temporaries as remove_stale_temporaries
from .files import link_or_copy as link_or_copy
from .manifest import MANIFEST_NAME as MANIFEST_NAME
from .safetensors_file import map_tensors as map_tensors
