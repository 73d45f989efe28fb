# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked && strip -o /postrider target/release/postrider

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --home-dir /nonexistent postrider
COPY --from=build /postrider /usr/local/bin/postrider
USER 10001:10001
EXPOSE 9464
# It asks the relay's own /healthz: an outage of Postgres or NATS is no reason to start it again. Docker knows
# the exit statuses 0 and 1 only.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD postrider status --check || exit 1
ENTRYPOINT ["postrider"]
CMD ["run"]
