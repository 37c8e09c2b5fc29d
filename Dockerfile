# flagvega on NVIDIA GPUs, with transformer-engine (which compiles here, hence the devel image):
#   docker build -t flagvega:cuda .
#   docker run --rm --gpus all --shm-size 8g --ulimit memlock=-1 flagvega:cuda action=env
FROM nvidia/cuda:13.0.2-cudnn-devel-rockylinux9
RUN dnf install -y python3.11 python3.11-pip python3.11-devel gcc-c++ git && dnf clean all
WORKDIR /opt/flagvega
RUN python3.11 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements requirements
RUN pip install --no-cache-dir -r requirements/torch.txt \
    && pip install --no-cache-dir -r requirements/train.txt \
    && MAX_JOBS=4 pip install --no-cache-dir --no-build-isolation -r requirements/train-cuda.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && useradd --create-home flagvega && chown -R flagvega /opt/flagvega
USER flagvega
ENTRYPOINT ["python", "run.py"]
CMD ["--help"]
