// Builds influxd, InfluxDB 2's own server, for tests and `make influx`. The replacement is the one in
// InfluxDB's own go.mod, which `go install` would refuse.
module windrow/influxd

go 1.23.0

require github.com/influxdata/influxdb/v2 v2.7.12

replace github.com/nats-io/nats-streaming-server v0.11.2 => github.com/influxdata/nats-streaming-server v0.11.3-0.20201112040610-c277f7560803
