# The proxy alone; Ollama runs beside it. See deploy/compose.yaml for both together.
FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY ollama_swap_proxy ollama_swap_proxy
RUN python -m venv /app && /app/bin/pip install --no-cache-dir --disable-pip-version-check '.[uvloop]'

FROM python:3.13-slim
COPY --from=build /app /app
# What was learned is kept here: mount a volume to keep it with the next image, too.
RUN install -d -o 65534 -g 65534 -m 0700 /var/lib/ollama-swap-proxy
ENV OLLAMA_SWAP_PROXY_STATE_FILE=/var/lib/ollama-swap-proxy/state.json
# Any user will do: nothing else is written but temporary files for large request bodies.
USER 65534:65534
# Inside a container every address is reached from outside only as far as it is published: publish on loopback
# (docker run -p 127.0.0.1:11434:11434 ...). OLLAMA_SWAP_PROXY_UPSTREAM must be given: there is no Ollama in here.
ENV OLLAMA_SWAP_PROXY_LISTEN=0.0.0.0:11434
EXPOSE 11434
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/app/bin/ollama-swap-proxy", "healthcheck"]
ENTRYPOINT ["/app/bin/ollama-swap-proxy"]
CMD ["serve"]
