# docker build -f docker/cpu.Dockerfile -t mrcnn-jax .
# docker run --rm -v "$PWD:/data" mrcnn-jax predict --model=maskrcnn_resnet50_fpn_v2 photo.jpg
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[light,serve]" && rm -r /src
# Weights and compiled programs stay beside the data.
ENV MRCNN_JAX_CACHE=/data/.cache/mrcnn_jax
WORKDIR /data
ENTRYPOINT ["mrcnn"]
