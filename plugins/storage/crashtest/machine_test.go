package crashtest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/crashfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

const data = "/data"

// patience is how long any call may take, by the bubble's clock: a call that ends there hangs.
const patience = time.Minute

// machine is a core and its plugin, in one process, each with a way of its own to the same disk.
type machine struct {
	disk     *crashfs.FS
	instance string
	core     *faultfs.FS
	plugin   *faultfs.FS
	dir      *lend.Dir
	store    *filelog.Store
	stopRun  context.CancelFunc
	running  sync.WaitGroup
	killed   atomic.Bool // the core gave up the plugin
}

// errKilled is what a killed process gets instead of its calls.
var errKilled = errors.New("process was killed")

// boot starts a core that knows of nothing, and a plugin.
func boot(ctx context.Context, disk *crashfs.FS, instance string) (*machine, error) {
	m := &machine{disk: disk, instance: instance, core: faultfs.New(disk)}
	m.dir = lend.NewDir(lend.Options{FS: m.core, Instance: instance, Budget: lend.NewBudget(2)})
	if err := m.startPlugin(ctx); err != nil {
		return nil, errors.Join(err, m.dir.Close())
	}
	runCtx, cancel := context.WithCancel(context.Background())
	m.stopRun = cancel
	m.running.Go(func() { _ = m.dir.Run(runCtx) })
	return m, nil
}

// startPlugin starts a plugin and hands it to the core.
func (m *machine) startPlugin(ctx context.Context) error {
	m.plugin = faultfs.New(m.disk)
	store, err := filelog.New(filelog.Options{Data: data, FS: m.plugin})
	if err != nil {
		return err
	}
	m.store = store
	m.killed.Store(false)
	err = m.dir.Adopt(ctx, &lend.Plugin{Store: store, Kill: func(error) { m.killed.Store(true) }})
	if err != nil {
		m.killPlugin()
	}
	return err
}

// killPlugin ends the plugin between two of its calls. What it has lent goes on.
func (m *machine) killPlugin() {
	kill(m.plugin)
	_ = m.store.Stop() // what it still wanted to do fails
	m.dir.Orphan()
}

func kill(process *faultfs.FS) {
	lent := func(c faultfs.Call) bool { return c.Op == faultfs.Read || c.Op == faultfs.FileStat }
	process.Inject(faultfs.Fault{Match: func(c faultfs.Call) bool { return !lent(c) }, Times: -1, Err: errKilled})
}

// kill ends core and plugin between two of their calls; the machine goes on.
func (m *machine) kill() {
	kill(m.core)
	m.stopRun()
	m.running.Wait()
	m.killPlugin()
	_ = m.dir.Close() // only descriptors; they die with their process
}

// end stops both in order. It returns what went wrong unseen.
func (m *machine) end() error {
	m.stopRun()
	m.running.Wait()
	return errors.Join(m.dir.Close(), m.store.Stop())
}

// open opens a partition as a core does at start. On return what is in it is known.
func (m *machine) open(ctx context.Context, h *history, advance func(context.Context) (record.Epoch, error)) (*lend.Log, *storage.Cut, error) {
	return m.dir.Open(ctx, h.part, lend.OpenOptions{
		Create: h.life == creating, Epoch: h.epoch, Advance: advance, Settings: h.settings,
	})
}

// read returns the records of [start, end), every batch checked.
func read(ctx context.Context, l *lend.Log, start, end record.Offset) ([]string, error) {
	r, err := l.NewReader(ctx, start)
	if err != nil {
		return nil, err
	}
	var values []string
	for {
		b, err := r.Next(ctx, end)
		if errors.Is(err, lend.ErrEnd) {
			return values, nil
		}
		if err != nil {
			return values, err
		}
		it := record.NewIterator(b)
		var rec record.Record
		for {
			off, ok := it.Next(&rec)
			if !ok {
				break
			}
			if off >= start { // the log start may lie inside a batch
				values = append(values, string(rec.Value))
			}
		}
		if err := it.Err(); err != nil {
			return values, err
		}
	}
}

// group makes batches of values that follow the log's end.
func group(l *lend.Log, batches [][]string) lend.Group {
	g := lend.Group{Base: l.End(), Next: l.End()}
	for _, values := range batches {
		var b record.Builder
		b.Reset(nil)
		for i, v := range values {
			b.Append(&record.Record{Timestamp: int64(g.Next) + int64(i), Value: []byte(v)})
		}
		batch := b.Finish(g.Next, l.Epoch())
		g.Bytes = append(g.Bytes, batch...)
		g.Next, g.MaxTimestamp = batch.NextOffset(), max(g.MaxTimestamp, batch.MaxTimestamp())
	}
	return g
}

// segments are the sizes of a partition's segments, by base.
func segments(disk vfs.FS, p storage.Partition) (map[record.Offset]int64, error) {
	dir := filepath.Join(data, "logs", p.String())
	entries, err := disk.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	sizes := map[record.Offset]int64{}
	for _, e := range entries {
		base, ok := kafkalog.ParseSegmentName(e.Name())
		if !ok {
			continue
		}
		info, err := disk.Stat(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		sizes[base] = info.Size
	}
	return sizes, err
}

// topicIDs lists whose directories lie under logs/.
func topicIDs(disk vfs.FS) ([]string, error) {
	entries, err := disk.ReadDir(filepath.Join(data, "logs"))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		text, err := readFile(disk, filepath.Join(data, "logs", e.Name(), kafkalog.PartitionMetadataName))
		if err != nil {
			return nil, err
		}
		id, err := kafkalog.ParsePartitionMetadata(text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

func readFile(disk vfs.FS, name string) ([]byte, error) {
	f, err := disk.Open(name, vfs.Read)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, info.Size)
	if n, err := f.ReadAt(b, 0); n < len(b) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// logFiles matches calls of one kind about segments.
func logFiles(op faultfs.Op) func(faultfs.Call) bool { return faultfs.On(op, "*"+kafkalog.LogSuffix) }

// isFull is a fault as a full disk makes it.
func isFull(match func(faultfs.Call) bool, short int) faultfs.Fault {
	return faultfs.Fault{Match: match, Short: short, Err: syscall.ENOSPC}
}

func quarantined(disk vfs.FS) (string, error) {
	entries, err := disk.ReadDir(filepath.Join(data, "quarantine"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " "), err
}
