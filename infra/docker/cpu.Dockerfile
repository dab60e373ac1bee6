# segtrain without GPUs: for preparing data, for the head of a cluster, and to try things out.
#
#   BASE_DIGEST=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' rayproject/ray:2.60.0-py311-cpu)
#   docker build --build-arg BASE_DIGEST=$BASE_DIGEST -f infra/docker/cpu.Dockerfile -t REGISTRY/segtrain:0.1.0-ray2.60.0-cpu .
#
# gpu.Dockerfile without CUDA; the reasons stand there. Ray, Python and every package are the same, as a head must have.
ARG RAY_VERSION=2.60.0
ARG PYTHON=py311
# A tag may be moved, a digest not; the first command above finds it. Without it the build ends at once.
ARG BASE_DIGEST
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}-cpu@${BASE_DIGEST}
ARG RAY_VERSION
ARG UV_VERSION=0.13.9

USER 1000:100
RUN mkdir /home/ray/segtrain
WORKDIR /home/ray/segtrain

# boto3 is what a head of `ray up` starts machines with; Ray's image has one that does not fit the locked botocore.
COPY --chown=1000:100 pyproject.toml requirements.lock ./
RUN pip install --no-cache-dir "uv==${UV_VERSION}" \
 && uv pip install --system --no-cache --compile-bytecode -c requirements.lock -r pyproject.toml \
    boto3

COPY --chown=1000:100 README.md LICENSE ./
COPY --chown=1000:100 segtrain segtrain
COPY --chown=1000:100 jobs jobs
RUN uv pip install --system --no-cache --no-deps --no-build-isolation --editable . \
 && python -m compileall -q segtrain jobs \
 && python -c "import ray, segtrain.launch, tensorflow; assert ray.__version__ == '${RAY_VERSION}', ray.__version__"
