// Package plugintest runs the conformance suite of a plugin's kind on the plugin as it will run: a process of its own,
// started by the host that the server has. An author calls Run from a test; trunkline-server plugin test does the same
// for an executable in any language.
//
// Each case has a process, or several, to itself, and a data directory. It assumes that the plugin needs nothing but its
// configuration; a backend elsewhere must be up. It measures no speed, and what it does not find it does not vouch for.
package plugintest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/metadatarpc"
	"github.com/trunkline-mq/trunkline/plugins/metadata/metadatatest"
	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionertest"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
)

// Options say what is tested.
type Options struct {
	Kind, Name string // as the configuration names it
	// File is the executable's path. Empty: Command is run.
	File    string
	Command []string // of a plugin that lives in another program: absolute path and arguments
	// Config makes the configuration, a JSON object, for a process whose data directory is dir; unique is a word that no
	// two stores share that must not know of each other. Nil: there is none.
	Config func(dir, unique string) []byte
	// Match chooses the cases whose names contain it, beside the first. Empty: all.
	Match string
	// Logger gets what the plugin logs. Nil: nobody does.
	Logger *slog.Logger
	// Only leaves out all cases but the first: whether the plugin starts and is what it is named as.
	Only bool
	// Started is told the plugin's version by the first case. Nil: nobody is.
	Started func(version string)
	// Report is told of each case when it is over. Nil: nobody is.
	Report func(Result)
}

// Result is what came of one case.
type Result struct {
	Case     string
	Took     time.Duration
	Failures []string // empty: it passed
}

// ErrKind says that there is no such kind of plugin.
var ErrKind = errors.New("a plugin is of kind storage, partitioner or metadata")

// patience bounds calls and starts: the machine's speed is not what is tested.
const patience = 20 * time.Second

// Run runs the suite and returns what came of each case, in order. The first case is whether the plugin starts; if it
// does not, there is no other. ErrKind for another kind.
func Run(ctx context.Context, o Options) ([]Result, error) {
	b := &bench{o: o}
	if b.o.Logger == nil {
		b.o.Logger = slog.New(slog.DiscardHandler)
	}
	if b.o.File != "" {
		path, err := filepath.Abs(b.o.File)
		if err != nil {
			return nil, fmt.Errorf("test %s: %w", o.File, err)
		}
		b.o.File = path
	}
	cases, err := b.cases()
	if err != nil {
		return nil, err
	}
	var all []Result
	for i := 0; i < len(cases); i++ {
		c := cases[i]
		if i > 0 && !strings.Contains(c.name, o.Match) {
			continue
		}
		began := time.Now()
		r := Result{Case: c.name, Failures: run(ctx, c.test), Took: time.Since(began)}
		all = append(all, r)
		if o.Report != nil {
			o.Report(r)
		}
		if ctx.Err() != nil {
			return all, context.Cause(ctx)
		}
		if i == 0 && (o.Only || len(r.Failures) > 0) {
			break
		}
		if i == 0 && o.Kind == sdk.KindStorage {
			cases = append(cases, b.storageCases()...)
		}
	}
	return all, nil
}

// testCase is a case of any suite.
type testCase struct {
	name string
	test func(t *tester)
}

func (b *bench) cases() ([]testCase, error) {
	all := []testCase{
		{name: "starts and says what it is", test: b.testStart},
		{name: "ends when it is asked to", test: b.testEnd},
		{name: "starts again after it was killed", test: b.testAgain},
	}
	switch b.o.Kind {
	case sdk.KindPartitioner:
		for _, c := range partitionertest.Cases() {
			all = append(all, testCase{name: c.Name, test: func(t *tester) {
				c.Run(t, func(partitionertest.TB) partitioner.Partitioner { return b.partitioner(t) })
			}})
		}
	case sdk.KindMetadata:
		for _, c := range metadatatest.Cases() {
			all = append(all, testCase{name: c.Name, test: func(t *tester) {
				c.Run(t, func(metadatatest.TB) metadata.Store { return b.metadata(t) })
			}})
		}
		all = append(all, testCase{name: "killed in the middle of commits it loses nothing", test: func(t *tester) {
			metadatatest.Crash(t, b.victim(t), crashes)
		}})
	case sdk.KindStorage: // storageCases, when the store has said what it is
	default:
		return nil, fmt.Errorf("%w, not %q", ErrKind, b.o.Kind)
	}
	return all, nil
}

// storageCases are those for what the store said that it is.
func (b *bench) storageCases() []testCase {
	var all []testCase
	for _, c := range storagetest.CasesFor(b.description) {
		all = append(all, testCase{name: sentence(c.Name), test: func(t *tester) {
			c.Run(t, func(dir string) (storage.Plugin, func()) { return b.storage(t, dir) })
		}})
	}
	return all
}

// crashes is how often a metadata store is killed.
const crashes = 5

// sentence takes a name like LeaseIsHeldOnce apart.
func sentence(name string) string {
	var s strings.Builder
	capital := func(i int) bool { return i < len(name) && name[i] >= 'A' && name[i] <= 'Z' }
	for i := range len(name) {
		if i > 0 && capital(i) && (!capital(i-1) || i+1 < len(name) && !capital(i+1)) {
			s.WriteByte(' ')
		}
		s.WriteByte(name[i])
	}
	return strings.ToLower(s.String())
}

func (b *bench) testStart(t *tester) {
	p := b.start(t, t.TempDir())
	version := p.sup.Status().Version
	if version == "" {
		t.Errorf("it does not tell its version; the SDK's Plugin.Version does")
	}
	if b.o.Started != nil {
		b.o.Started(version)
	}
	if b.o.Kind != sdk.KindStorage {
		return
	}
	d, err := storagerpc.NewClient(p.inst.Conn(), p.sock).Describe(t.Context())
	if err != nil {
		t.Fatalf("%v", err)
	}
	if d.Canary != nil {
		_ = d.Canary.Close() // it was only lent
	}
	d.Canary = nil
	b.description = d
}

func (b *bench) testEnd(t *tester) {
	p := b.start(t, t.TempDir())
	began := time.Now()
	p.stop()
	if p.down == nil || !errors.Is(p.down, host.ErrStopped) {
		t.Errorf("it ended before it was asked to: %v", p.down)
	}
	if took := time.Since(began); took >= endTimeout {
		t.Errorf("asked to end it was still there after %s, and was killed", endTimeout)
	}
}

func (b *bench) testAgain(t *tester) {
	dir := t.TempDir()
	p := b.start(t, dir)
	p.kill()
	b.start(t, dir)
}

func (b *bench) partitioner(t *tester) partitioner.Partitioner {
	c := partitionerrpc.NewClient(b.start(t, t.TempDir()).inst.Conn())
	t.Cleanup(func() { _ = c.Close() }) // never fails
	return c
}

func (b *bench) metadata(t *tester) metadata.Store {
	return metadatarpc.NewClientTimeout(b.start(t, t.TempDir()).inst.Conn(), patience)
}

// victim is a metadata store's process that Crash kills.
func (b *bench) victim(t *tester) metadatatest.Process {
	v := &victim{bench: b, t: t, dir: t.TempDir(), unique: b.unique()}
	v.process = v.bench.startAs(t, v.dir, v.unique)
	return v
}

// victim starts the next process when it is asked for one.
type victim struct {
	bench       *bench
	t           *tester
	dir, unique string
	process     *process
}

// Store returns a client of the running process.
func (v *victim) Store(context.Context) (metadata.Store, error) {
	if v.process == nil {
		v.process = v.bench.startAs(v.t, v.dir, v.unique)
	}
	return metadatarpc.NewClientTimeout(v.process.inst.Conn(), patience), nil
}

// Kill kills the process and waits until it is gone.
func (v *victim) Kill(context.Context) error {
	v.process.kill()
	v.process = nil
	return nil
}
