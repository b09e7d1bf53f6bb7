// Package sdk is what a plugin's main is made of:
//
//	func main() {
//		sdk.Serve(sdk.Plugin{Kind: "partitioner", Name: "mine", Version: "1.0.0", Partitioner: mine{}})
//	}
//
// An author writes one Go interface of plugins/<kind>; Serve does the rest: configuration, handshake, gRPC, health,
// ending with the host or when the host asks for it. Logger writes into the host's log. AUTHORING.md, beside this
// package, goes through it step by step.
//
// It assumes that trunkline-server (or a host that does the same) starts the process. It restarts nothing and keeps
// no state; a panic ends the process, and the host starts another.
package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	grpcmetadata "google.golang.org/grpc/metadata"

	"github.com/trunkline-mq/trunkline/plugins/internal/handshake"
	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// The kinds of plugins.
const (
	KindStorage     = "storage"
	KindMetadata    = "metadata"
	KindPartitioner = "partitioner"
)

// Plugin is what a process offers: the implementation of its kind, and no other.
type Plugin struct {
	Kind    string // one of the Kind constants
	Name    string // as in the configuration
	Version string

	// Config is a pointer to a struct that holds the defaults, into which Serve reads what the operator configured, as the
	// function Config does. Nil: there is nothing to configure, or the author calls Config.
	Config any
	// Setup makes the implementation, when Config was read. An error ends the plugin, and the operator reads why. Nil: the
	// implementation is given.
	Setup func(p *Plugin) error

	Storage     storage.Plugin
	Metadata    metadata.Store
	Partitioner partitioner.Partitioner
}

// notByHand is what a person reads who runs a plugin.
const notByHand = "this is a Trunkline plugin, run by trunkline-server"

// Serve serves p until the host asks it to end or is gone, and then ends the process: it does not return. If the
// implementation has a method Close() error, or else Stop() error, it is called when the host asked, after the last
// answer was sent or cut off; calls may still be under way in it. If it has Failed() <-chan struct{}, the process ends when that channel
// is closed, so that the host starts another.
//
// What has to be opened first is opened in Setup. Print nothing to standard output before Serve: the first line there is
// the handshake.
func Serve(p Plugin) {
	if os.Getenv(handshake.CookieKey) != handshake.CookieValue {
		fmt.Fprintln(os.Stderr, notByHand)
		os.Exit(1)
	}
	signal.Ignore(os.Interrupt) // a terminal's Ctrl-C is for the host, which then asks us to end
	parent, err := watchParent(func() { os.Exit(1) })
	if err != nil {
		Fatal(err)
	}
	if err := p.setUp(); err != nil {
		Fatal(err)
	}
	offer, err := p.prepare()
	if err != nil {
		Fatal(err)
	}
	var wg sync.WaitGroup
	over := make(chan struct{})
	if f, ok := offer.impl.(interface{ Failed() <-chan struct{} }); ok {
		wg.Go(func() {
			select {
			case <-f.Failed():
				Fatal(errors.New("the plugin gives up, see above; the host starts it again"))
			case <-over:
			}
		})
	}
	plugin.Serve(p.serveConfig(offer.register))
	close(over)
	wg.Wait()
	parent.close()
	if err := errors.Join(offer.finish(), offer.release()); err != nil {
		Fatal(fmt.Errorf("end: %w", err))
	}
	os.Exit(0)
}

// setUp reads the configuration and makes the implementation.
func (p *Plugin) setUp() error {
	if p.Config != nil {
		if err := Config(p.Config); err != nil {
			return err
		}
	}
	if p.Setup == nil {
		return nil
	}
	return p.Setup(p)
}

// versions is this plugin under each version of the protocol that it speaks.
func (p Plugin) versions(register func(*grpc.Server)) map[int]plugin.PluginSet {
	sets := map[int]plugin.PluginSet{}
	for _, v := range handshake.Versions() {
		sets[v] = plugin.PluginSet{p.Kind: offered{register: register}}
	}
	return sets
}

func (p Plugin) serveConfig(register func(*grpc.Server)) *plugin.ServeConfig {
	return &plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			MagicCookieKey: handshake.CookieKey, MagicCookieValue: handshake.CookieValue,
		},
		VersionedPlugins: p.versions(register),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts,
				grpc.MaxRecvMsgSize(handshake.MessageBytesMax),
				grpc.MaxSendMsgSize(handshake.MessageBytesMax),
				grpc.StaticStreamWindowSize(handshake.WindowBytes), grpc.StaticConnWindowSize(handshake.WindowBytes),
				grpc.ChainUnaryInterceptor(p.introduce))...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: rawStderr{}, JSONFormat: true}),
	}
}

// introduce says in the header of health answers what this plugin is.
func (p Plugin) introduce(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if info.FullMethod == healthMethod {
		md := grpcmetadata.Pairs(handshake.HeaderKind, p.Kind, handshake.HeaderName, p.Name, handshake.HeaderVersion, p.Version)
		if err := grpc.SetHeader(ctx, md); err != nil {
			return nil, err
		}
	}
	return handler(ctx, req)
}

const healthMethod = "/grpc.health.v1.Health/Check"

// offered is a plugin as go-plugin takes it.
type offered struct {
	plugin.NetRPCUnsupportedPlugin
	register func(*grpc.Server)
}

var _ plugin.GRPCPlugin = offered{}

// GRPCServer registers the implementation.
func (o offered) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	o.register(s)
	return nil
}

// GRPCClient is the host's side.
func (o offered) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("a plugin is no host")
}

// Config reads the plugin's configuration, a JSON object, into v, a pointer to a struct that holds the defaults.
// Unknown keys are errors, and so is anything after the object. Without a configuration v stays as it is. If v has a
// method Validate() error, that has the last word.
func Config(v any) error {
	if raw := os.Getenv(handshake.ConfigEnv); raw != "" {
		dec := json.NewDecoder(bytes.NewReader([]byte(raw)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(v); err != nil {
			return fmt.Errorf("plugin configuration: %w", err)
		}
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return errors.New("plugin configuration: more than one JSON value")
		}
	}
	if c, ok := v.(interface{ Validate() error }); ok {
		if err := c.Validate(); err != nil {
			return fmt.Errorf("plugin configuration: %w", err)
		}
	}
	return nil
}

// DataDir is the server's data directory, an absolute path, in which plugins of storage and metadata keep what they keep,
// in a directory of their own. Empty for other kinds.
func DataDir() string { return os.Getenv(handshake.DataEnv) }
