package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/config"
	"github.com/trunkline-mq/trunkline/server/internal/conn"
	"github.com/trunkline-mq/trunkline/server/internal/datadir"
	"github.com/trunkline-mq/trunkline/server/internal/httpd"
)

// version is set by the linker.
var version = "dev"

// drainTime is how long clients may take to hear their answers after TERM.
const drainTime = 5 * time.Second

// serve runs the broker until a signal ends it. Everything that was opened is closed again, whatever happens.
func serve(cfg config.Config, log *slog.Logger, stderr io.Writer) (err error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()

	listener, err := listen("clients", "listen", cfg.Listen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeListener(listener)) }()
	web, err := listen("HTTP", "http", cfg.HTTP)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeListener(web)) }()

	data, err := datadir.Open(ctx, cfg.Data, int(cfg.BrokerID))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	b, err := broker.New(brokerOptions(cfg, data, log))
	if err != nil {
		return err
	}
	if err := b.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	clients := conn.NewServer(connOptions(cfg, data, b, log))
	s := servers{clients: clients, listener: listener, web: web, http: httpd.New(b.Ready)}
	s.start()
	httpAddr := "-"
	if web != nil {
		httpAddr = web.Addr().String()
	}
	_, _ = fmt.Fprintf(stderr, "ready client=%s http=%s data=%s\n", listener.Addr(), httpAddr, data.Path)
	return s.run(signals, log)
}

// listen opens a listener; none for an address of "-" or "".
func listen(what, key, addr string) (net.Listener, error) {
	if addr == "" || addr == "-" {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("address %s for %s is in use: stop what uses it, or choose another with --%s (port 0 picks one)", addr, what, key)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen for %s: %w; choose another address with --%s", what, err, key)
	}
	return l, nil
}

func closeListener(l net.Listener) error {
	if l == nil {
		return nil
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// servers are what accepts connections.
type servers struct {
	clients  *conn.Server
	listener net.Listener
	web      net.Listener // nil: no HTTP
	http     *httpd.Server
	tasks    errgroup.Group
	failed   chan error
}

func (s *servers) start() {
	s.failed = make(chan error, 2) // one from each
	s.tasks.Go(func() error { s.failed <- s.clients.Serve(s.listener); return nil })
	if s.web != nil {
		s.tasks.Go(func() error { s.failed <- s.http.Serve(s.web); return nil })
	}
}

// run waits for the end and shuts down: no new connections, queued answers out, then everybody gone.
func (s *servers) run(signals <-chan os.Signal, log *slog.Logger) error {
	var fault error
	select {
	case sig := <-signals:
		log.Info("shutting down", "signal", sig.String())
	case fault = <-s.failed:
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	var second errgroup.Group
	second.Go(func() error {
		select {
		case <-signals: // a second one: do not wait for anybody
			cancel()
		case <-ctx.Done():
		}
		return nil
	})
	fault = errors.Join(fault, closeListener(s.listener))
	s.clients.Shutdown(ctx)
	cancel()
	_ = second.Wait()
	if s.web != nil {
		quick, done := context.WithTimeout(context.Background(), time.Second)
		defer done()
		if err := s.http.Shutdown(quick); err != nil {
			log.Warn("HTTP connections cut", "err", err)
		}
	}
	return errors.Join(fault, s.tasks.Wait())
}

func brokerOptions(cfg config.Config, data *datadir.Dir, log *slog.Logger) broker.Options {
	return broker.Options{
		Data: data, Plugin: []string{"/proc/self/exe", "plugin"},
		AutoCreate: cfg.Topics.AutoCreate, AutoCreateMax: cfg.Topics.AutoCreateMax, Partitions: cfg.Topics.Partitions,
		PublishTimeout: cfg.Limits.PublishTimeout,
		SyncParallel:   cfg.Storage.SyncParallel, OpenFiles: openFiles(cfg.Storage.OpenFiles), Logger: log,
	}
}

// fileReserve stays free for what must always work: metadata, logs, and the plugins' pipes.
const fileReserve = 64

// openFiles is how many sealed segments may be open: what was configured, or half of what the process's limit leaves,
// so that connections get the other half.
func openFiles(configured int) int {
	if configured > 0 {
		return configured
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fileReserve
	}
	return int(max(fileReserve, (min(limit.Cur, 1<<20)-fileReserve)/2))
}

func connOptions(cfg config.Config, data *datadir.Dir, b *broker.Broker, log *slog.Logger) conn.Options {
	return conn.Options{
		Broker: b, Connections: cfg.Limits.Connections,
		Limits:  line.Limits{ControlLine: cfg.Limits.ControlLine, Payload: cfg.Limits.Payload},
		Pending: cfg.Limits.Pending, WriteDeadline: cfg.Limits.WriteDeadline, Publish: cfg.Limits.PublishTimeout,
		Live: cfg.LiveSubjects,
		Identity: conn.Identity{
			ServerID: datadir.RandomID(), Name: fmt.Sprintf("trunkline-%d", data.BrokerID), Version: version,
			Cluster: data.ClusterID, Broker: data.BrokerID, Advertise: cfg.Advertise,
		},
		Logger: log,
	}
}
