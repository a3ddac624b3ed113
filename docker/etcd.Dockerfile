# etcd as LPMOS links it, so that the server is the version go.mod pins.
FROM golang:1.26 AS build
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -tags=nomsgpack -o /etcd ./test/e2e/etcd

FROM scratch
COPY --from=build /etcd /etcd
EXPOSE 2379
ENTRYPOINT ["/etcd"]
