package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
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

// program is one run of the server.
type program struct {
	cfg    config.Config
	source *config.Source
	log    *slog.Logger
	level  *slog.LevelVar // of log
	stderr io.Writer
}

// serve runs the broker until a signal ends it. Everything that was opened is closed again, whatever happens.
func (p *program) serve() (err error) {
	cfg, log := p.cfg, p.log
	signals, hups := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR2)
	signal.Notify(hups, syscall.SIGHUP)
	defer signal.Stop(signals)
	defer signal.Stop(hups)
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
	s := servers{listener: listener, web: web, lameDuck: cfg.Limits.LameDuck, failed: make(chan error, 2)} // one from each
	s.health.isNot("starting")
	s.serveHTTP()
	httpAddr := "-"
	if web != nil {
		httpAddr = web.Addr().String()
	}
	defer func() { err = errors.Join(err, s.endHTTP(log)) }()

	var data *datadir.Dir
	err = untilSignal(ctx, signals, func(ctx context.Context) (err error) {
		data, err = datadir.Open(ctx, cfg.Data, int(cfg.BrokerID), func(holder string) {
			log.Warn("waiting for the data directory: another server has it", "data", cfg.Data, "holder", holder, "http", httpAddr)
			s.health.isNot(fmt.Sprintf("waiting for the data directory %s: another server has it (%s)", cfg.Data, holder))
		})
		return err
	}, func() error { return data.Close() })
	if errors.Is(err, errInterrupted) {
		log.Info("told to end while starting")
		return nil
	} else if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	s.health.isNot("starting: plugins are started and topics opened")
	b, err := broker.New(brokerOptions(cfg, data, log))
	if err != nil {
		return err
	}
	if err := untilSignal(ctx, signals, b.Start, b.Close); errors.Is(err, errInterrupted) {
		log.Info("told to end while starting")
		return nil
	} else if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	options := connOptions(cfg, data, b, log)
	if web != nil {
		options.Identity.HTTP = httpAddr
	}
	s.clients = conn.NewServer(options)
	s.reload, s.settle = func() { p.reload(&s, b) }, b.EndChanges
	s.serveClients()
	s.health.is(b.Ready)
	_, _ = fmt.Fprintf(p.stderr, "ready client=%s http=%s data=%s\n", listener.Addr(), httpAddr, data.Path)
	return s.run(signals, hups, log)
}

// reload takes a changed configuration over: all of it or, with the reason in the log, nothing.
func (p *program) reload(s *servers, b *broker.Broker) {
	next, err := p.source.Read()
	if faulty, ok := errors.AsType[*config.Error](err); ok {
		p.log.Error("configuration not reloaded, nothing was changed: it has faults", "faults", len(faulty.Faults))
		for _, fault := range faulty.Faults {
			p.log.Error("configuration fault", "fault", fault)
		}
		return
	}
	var fixed []string
	for _, c := range next.Changes {
		if c.Restart {
			fixed = append(fixed, c.Key)
		}
	}
	if len(fixed) > 0 {
		p.log.Error("configuration not reloaded, nothing was changed: these keys need a restart", "keys", strings.Join(fixed, " "))
		return
	}
	for _, w := range next.Config.Warnings {
		p.log.Warn("configuration", "warning", w)
	}
	p.cfg = next.Config
	p.source.Accept(next)
	p.level.Set(p.cfg.Log.Level)
	s.lameDuck = p.cfg.Limits.LameDuck
	b.Tune(creation(p.cfg))
	s.clients.Tune(tuning(p.cfg, p.log))
	for _, c := range next.Changes {
		p.log.Info("configuration changed", "key", c.Key, "old", c.Old, "new", c.New)
	}
	p.log.Info("configuration reloaded", "file", p.cfg.File, "changes", len(next.Changes))
	p.tellPlugins(b)
}

// tellPlugins says which plugins the configuration has otherwise than they are: their processes are replaced one by one,
// when somebody asks for it, and not by HUP.
func (p *program) tellPlugins(b *broker.Broker) {
	named, err := foreign(p.cfg)()
	if err != nil {
		p.log.Error("plugins in the configuration cannot be read", "err", err)
		return
	}
	for _, c := range b.PluginChanges(named) {
		do := "trunkline plugin reload " + c.Kind + "/" + c.Name
		if c.What == "removed" {
			do = "restart the server"
		}
		p.log.Warn("plugin is not as the configuration has it now: HUP leaves plugins alone", "kind", c.Kind, "name", c.Name, "change", c.What, "do", do)
	}
}

// errInterrupted says that a signal came before the broker was up.
var errInterrupted = errors.New("told to end while starting")

// untilSignal does a step of the start, which may wait for what it needs. A signal ends that, and undoes it where it was
// done all the same.
func untilSignal(ctx context.Context, signals <-chan os.Signal, step func(context.Context) error, undo func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var listener errgroup.Group
	listener.Go(func() error {
		select {
		case <-signals:
			cancel(errInterrupted)
		case <-ctx.Done():
		}
		return nil
	})
	err := step(ctx)
	interrupted := errors.Is(context.Cause(ctx), errInterrupted)
	cancel(nil)
	_ = listener.Wait()
	switch {
	case interrupted && err == nil:
		return errors.Join(errInterrupted, undo())
	case interrupted: // the rest of err comes of it
		return errInterrupted
	}
	return err
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

// health is what /readyz says.
type health struct{ ready atomic.Pointer[func() error] }

// is has another ask why the server does not serve.
func (h *health) is(ready func() error) { h.ready.Store(&ready) }

// isNot says why the server does not serve.
func (h *health) isNot(why string) { h.is(func() error { return errors.New(why) }) }

func (h *health) now() error { return (*h.ready.Load())() }

// servers are what accepts connections.
type servers struct {
	clients  *conn.Server
	listener net.Listener
	web      net.Listener // nil: no HTTP
	http     *httpd.Server
	health   health
	lameDuck config.LameDuck
	reload   func() // reads the configuration again
	settle   func() // ends changes of topics, which clients wait for
	tasks    errgroup.Group
	failed   chan error
}

// serveHTTP answers over HTTP from the start, which may have to wait for something: whoever asks is told for what.
func (s *servers) serveHTTP() {
	if s.web == nil {
		return
	}
	s.http = httpd.New(s.health.now)
	s.tasks.Go(func() error { s.failed <- s.http.Serve(s.web); return nil })
}

// endHTTP ends what serveHTTP began, and waits for all there is; safe to call twice.
func (s *servers) endHTTP(log *slog.Logger) error {
	if s.web != nil {
		quick, done := context.WithTimeout(context.Background(), time.Second)
		defer done()
		if err := s.http.Shutdown(quick); err != nil {
			log.Warn("HTTP connections cut", "err", err)
		}
	}
	return s.tasks.Wait()
}

func (s *servers) serveClients() {
	s.tasks.Go(func() error { s.failed <- s.clients.Serve(s.listener); return nil })
}

// run waits for the end and shuts down: no new connections, queued answers out, then everybody gone.
func (s *servers) run(signals, hups <-chan os.Signal, log *slog.Logger) error {
	fault := s.untilTold(signals, hups, log)
	s.health.isNot("going down")
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
	second.Go(func() error { s.settle(); return nil })
	fault = errors.Join(fault, closeListener(s.listener))
	s.clients.Shutdown(ctx)
	cancel()
	_ = second.Wait()
	return errors.Join(fault, s.endHTTP(log))
}

// untilTold serves until a signal or a listener's failure ends it.
func (s *servers) untilTold(signals, hups <-chan os.Signal, log *slog.Logger) error {
	for {
		select {
		case <-hups:
			s.reload()
		case sig := <-signals:
			if sig == syscall.SIGUSR2 {
				s.health.isNot("going down: clients are told to go elsewhere")
				fault := closeListener(s.listener)
				s.retire(signals, log)
				return fault
			}
			log.Info("shutting down", "signal", sig.String())
			return nil
		case fault := <-s.failed:
			return fault
		}
	}
}

// retire lets clients go elsewhere in their own time. A signal to end ends it.
func (s *servers) retire(signals <-chan os.Signal, log *slog.Logger) {
	log.Info("lame duck: clients are told to go elsewhere", "grace", s.lameDuck.Grace.String(), "spread", s.lameDuck.Spread.String())
	ctx, cancel := context.WithCancel(context.Background())
	var impatient errgroup.Group
	impatient.Go(func() error {
		for {
			select {
			case sig := <-signals:
				if sig == syscall.SIGUSR2 {
					continue // it is under way
				}
				cancel()
			case <-ctx.Done():
			}
			return nil
		}
	})
	s.clients.Retire(ctx, s.lameDuck.Grace, s.lameDuck.Spread)
	cancel()
	_ = impatient.Wait()
}

func brokerOptions(cfg config.Config, data *datadir.Dir, log *slog.Logger) broker.Options {
	return broker.Options{
		Data: data, Plugin: []string{"/proc/self/exe", "plugin"}, Metadata: metadataOptions(cfg),
		Creation: creation(cfg),
		Foreign:  foreign(cfg), Breaker: broker.Breaker{Crashes: cfg.Plugins.BreakerCrashes, Window: cfg.Plugins.BreakerWindow},
		PublishTimeout: cfg.Limits.PublishTimeout,
		SyncParallel:   cfg.Storage.SyncParallel, OpenFiles: openFiles(cfg), Reserve: cfg.Storage.Reserve, Memory: cfg.Storage.Memory, Logger: log,
	}
}

// creation and tuning are what a reload may change.
func creation(cfg config.Config) broker.Creation {
	return broker.Creation{Auto: cfg.Topics.AutoCreate, Max: cfg.Topics.AutoCreateMax, Partitions: cfg.Topics.Partitions}
}

func tuning(cfg config.Config, log *slog.Logger) conn.Tuning {
	return conn.Tuning{
		Connections: connections(cfg, log), Pending: cfg.Limits.Pending, WriteDeadline: cfg.Limits.WriteDeadline,
		AutoCreate: cfg.Topics.AutoCreate, Subscriptions: cfg.Limits.Subscriptions,
	}
}

// metadataOptions say which metadata plugin is started, and how.
func metadataOptions(cfg config.Config) broker.Metadata {
	m := broker.Metadata{Name: cfg.Metadata}
	if cfg.Metadata == config.MetadataZookeeper {
		z := cfg.Zookeeper
		// Texts and a number: this cannot fail.
		m.Config, _ = json.Marshal(pluginConfig{Zookeeper: zookeeperConfig{Servers: z.Servers, Chroot: z.Chroot, Session: z.Session, Digest: z.Digest}})
	}
	return m
}

// fileReserve stays free for what must always work: metadata, logs, and the plugins' pipes.
const fileReserve = 64

// descriptors is how many the process may open beside the reserve.
func descriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fileReserve
	}
	return max(fileReserve, int(min(limit.Cur, 1<<20))-fileReserve)
}

// openFiles is how many segments may be open, active and sealed ones: what was configured, as far as the process's limit
// allows, or what connections leave of that, at most half of it.
func openFiles(cfg config.Config) int {
	all := descriptors()
	if cfg.Storage.OpenFiles > 0 {
		return min(cfg.Storage.OpenFiles, all)
	}
	return max(fileReserve, min(all/2, all-cfg.Limits.Connections))
}

// connections is how many clients there may be: what was configured, and no more than there are descriptors for. Who
// comes on top can then still be told why it is not served.
func connections(cfg config.Config, log *slog.Logger) int {
	room := max(1, descriptors()-openFiles(cfg))
	if cfg.Limits.Connections <= room {
		return cfg.Limits.Connections
	}
	log.Warn("limits.connections is lowered: the process may not open more descriptors; raise its limit (ulimit -n)",
		"configured", cfg.Limits.Connections, "connections", room)
	return room
}

func connOptions(cfg config.Config, data *datadir.Dir, b *broker.Broker, log *slog.Logger) conn.Options {
	return conn.Options{
		Broker: b, Tuning: tuning(cfg, log),
		Limits:  line.Limits{ControlLine: cfg.Limits.ControlLine, Payload: cfg.Limits.Payload},
		Publish: cfg.Limits.PublishTimeout, Live: cfg.LiveSubjects, PingInterval: cfg.Limits.PingInterval,
		Identity: conn.Identity{
			ServerID: datadir.RandomID(), Name: fmt.Sprintf("trunkline-%d", data.BrokerID), Version: version,
			Cluster: data.ClusterID, Broker: data.BrokerID, Advertise: cfg.Advertise,
		},
		Logger: log,
	}
}
