# segtrain on GPUs: Ray's CUDA 12.5 image, the locked dependencies, TensorFlow's CUDA libraries, segtrain.
#
#   BASE_DIGEST=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' rayproject/ray:2.60.0-py311-cu125)
#   docker build --build-arg BASE_DIGEST=$BASE_DIGEST -f infra/docker/gpu.Dockerfile -t REGISTRY/segtrain:0.1.0-ray2.60.0-cu125 .
#
# TensorFlow 2.21 is built with CUDA 12.5. Ray's `-gpu` tags are CUDA 12.1, so they do not fit. The machine's driver
# must run CUDA 12 (525 or newer), on Hopper and newer GPUs CUDA 12.5 (555 or newer). Ray and Python are those of the
# whole cluster: head, workers and who submits.
ARG RAY_VERSION=2.60.0
ARG PYTHON=py311
ARG CUDA=cu125
# A tag may be moved, a digest not; the first command above finds it. Without it the build ends at once.
ARG BASE_DIGEST
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}-${CUDA}@${BASE_DIGEST}
ARG RAY_VERSION
ARG UV_VERSION=0.13.9

# TensorFlow has no compiled kernels for GPUs newer than compute capability 8.9 (Hopper, Blackwell): the driver compiles
# them at first use and keeps them, in CUDA_CACHE_PATH if that is set. cluster.yaml and infra/kuberay set it to the NVMe
# that they mount. 4 GiB is the largest cache that the driver takes; its own 1 GiB throws kernels away again.
ENV CUDA_CACHE_MAXSIZE=4294967296

# User `ray` of group `users`, as in Ray's image; Kubernetes can check numbers alone for `runAsNonRoot`.
USER 1000:100
RUN mkdir /home/ray/segtrain
WORKDIR /home/ray/segtrain

# The dependencies are a layer of their own, which a change of segtrain leaves as it is. The two locks are constraints,
# so development tools stay out, and uv compares every download with its hash. They go into Ray's own environment,
# because `ray up` and KubeRay start Ray from there. Compiled now, or each pod compiles TensorFlow at its first import.
# boto3 is what a head of `ray up` starts machines with; Ray's image has one that does not fit the locked botocore.
COPY --chown=1000:100 pyproject.toml requirements.lock infra/docker/cuda.lock ./
RUN pip install --no-cache-dir "uv==${UV_VERSION}" \
 && uv pip install --system --no-cache --compile-bytecode -c requirements.lock -c cuda.lock -r pyproject.toml --extra gpu \
    boto3

COPY --chown=1000:100 README.md LICENSE ./
COPY --chown=1000:100 segtrain segtrain
COPY --chown=1000:100 jobs jobs
# Editable: one copy, and a job's own working directory comes before it. The import fails the build rather than a pod.
RUN uv pip install --system --no-cache --no-deps --no-build-isolation --editable . \
 && python -m compileall -q segtrain jobs \
 && python -c "import ray, segtrain.launch, tensorflow; assert ray.__version__ == '${RAY_VERSION}', ray.__version__"
