package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func (a *app) logExportCommand() *cobra.Command {
	var to string
	var compacted bool
	cmd := &cobra.Command{
		Use:   "export DIR --to DIR [--compacted]",
		Short: "Copy a partition's directory for a Kafka broker",
		Long: "Copy the log in a partition's directory to a new one as a Kafka broker takes it: whole batches of leader\n" +
			"epoch 0, their indexes, and the epoch checkpoint. Put the files into the directory of the same partition of a\n" +
			"stopped broker, beside its own partition.metadata and nothing else. A damaged log is refused.",
		Args: argCount(1, 1), DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&to, "to", "", "the new `DIR`, which is empty or not there")
	cmd.Flags().BoolVar(&compacted, "compacted", false, compactedHelp)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if to == "" {
			return fmt.Errorf("name the directory to export to with --to")
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a.started = true
		return a.exportLog(cmd.Context(), args[0], to, compacted)
	}
	return cmd
}

// exportJSON is what was exported, as --json prints it.
type exportJSON struct {
	Dir      string `json:"dir"`
	Segments int    `json:"segments"`
	Batches  int64  `json:"batches"`
	Bytes    int64  `json:"bytes"`
	First    int64  `json:"first"`
	Next     int64  `json:"next"`
}

func (a *app) exportLog(ctx context.Context, from, to string, compacted bool) error {
	d, err := listLog(from)
	if err != nil {
		return err
	}
	if to, err = filepath.Abs(to); err != nil {
		return err
	}
	if err := exportable(d.path, to); err != nil {
		return err
	}
	gaps, err := d.gaps(compacted)
	if err != nil {
		return err
	}
	v := d.verifier(gaps, func(f kafkalog.Finding) {
		if a.json {
			a.warn(errors.New(f.String()))
			return
		}
		a.note("%s", f)
	})
	if err := d.verify(ctx, v, false); err != nil {
		return err
	}
	if n := v.Findings(); n > 0 {
		return fmt.Errorf("%s is damaged, faults: %d; nothing was exported. Start the server on it, which cuts a torn end and sets aside what is "+
			"damaged, stop it and export again; or export a replica", from, n)
	}
	x := &exporter{dir: d, next: v.Next(), gaps: gaps}
	if err := x.to(ctx, to); err != nil {
		return fmt.Errorf("export to %s: %w", to, err)
	}
	done := exportJSON{to, x.segments, x.batches, x.bytes, int64(x.first), int64(x.next)}
	if a.json {
		return a.printJSON(done)
	}
	_, err = fmt.Fprintf(a.out, "exported to %s: segments %d, batches %d, bytes %d, offsets %d to %d\n",
		to, done.Segments, done.Batches, done.Bytes, done.First, done.Next-1)
	return err
}

// exportable refuses a target that holds something, or would lie in the log itself.
func exportable(from, to string) error {
	if to == from || strings.HasPrefix(to, from+string(filepath.Separator)) {
		return usage("%s lies in the log that is exported; name another directory", to)
	}
	entries, err := os.ReadDir(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty: it has %s; name a new directory, or empty it", to, entries[0].Name())
	}
	return nil
}

// exporter copies a verified log.
type exporter struct {
	dir      *logDir
	target   string
	next     record.Offset // the log's end
	first    record.Offset // the first one exported
	gaps     record.Offset // below it records may be missing
	segments int
	batches  int64
	bytes    int64
	buf      []byte
	index    *kafkalog.IndexWriter
}

const (
	exportDirMode  = 0o755
	exportFileMode = 0o644
	exportBuffer   = 1 << 20
)

// to makes the target. All is built and synced under another name, so that a directory of the target's name is whole.
func (x *exporter) to(ctx context.Context, target string) error {
	parent := filepath.Dir(target)
	if err := makeParents(parent); err != nil {
		return err
	}
	x.target = filepath.Join(parent, fmt.Sprintf(".%s.exporting-%d", filepath.Base(target), os.Getpid()))
	if err := os.Mkdir(x.target, exportDirMode); err != nil {
		return err
	}
	err := x.fill(ctx)
	if err == nil {
		err = syncDir(x.target)
	}
	if err == nil {
		err = unix.Rename(x.target, target) // takes the place of an empty directory, and of nothing else
	}
	if err != nil {
		if removed := os.RemoveAll(x.target); removed != nil {
			return fmt.Errorf("%w; and what was begun is left: %w", err, removed)
		}
		return fmt.Errorf("%w; nothing was left there", err)
	}
	return syncDir(parent)
}

func (x *exporter) fill(ctx context.Context) error {
	x.buf = make([]byte, exportBuffer)
	x.index = kafkalog.NewIndexWriter(0, kafkalog.IndexIntervalBytes)
	for _, g := range x.dir.segments {
		if err := x.segment(ctx, g); err != nil {
			return err
		}
	}
	if x.batches == 0 || x.dir.segments[len(x.dir.segments)-1].size == 0 {
		// An empty segment is what holds the log's end where no batch does.
		if err := x.write(kafkalog.SegmentName(max(x.next, x.dir.start)), nil); err != nil {
			return err
		}
		x.segments++
	}
	if x.batches == 0 {
		x.first = max(x.next, x.dir.start)
		x.next = x.first
	}
	epochs, _ := kafkalog.Epochs(nil).Assign(0, x.first)
	return x.write(kafkalog.EpochCheckpointName, epochs.AppendText(nil))
}

// segment copies the batches of one segment that are not trimmed. Where that leaves out its beginning, it is named anew.
func (x *exporter) segment(ctx context.Context, g logSegment) (err error) {
	f, in, err := x.dir.open(g)
	if err != nil {
		return err
	}
	defer f.Close()
	var out *copied
	w := kafkalog.NewWalker(in, g.size, x.gaps)
	for b := (kafkalog.Walked{}); w.Next(&b); {
		if err := errors.Join(ctx.Err(), b.Err); err != nil {
			out.abandon()
			return err
		}
		if b.Header.NextOffset() <= x.dir.start {
			continue
		}
		if out == nil {
			base := g.base
			if base < x.dir.start {
				base = b.Header.BaseOffset()
			}
			if out, err = x.create(base); err != nil {
				return err
			}
		}
		if err := x.batch(out, f, &b); err != nil {
			out.abandon()
			return err
		}
	}
	if err := w.Err(); err != nil || out == nil {
		out.abandon()
		return err
	}
	return x.finish(out)
}

// copied is a segment that is being written.
type copied struct {
	base record.Offset
	file *os.File
	out  *bufio.Writer
	size int64
}

func (c *copied) abandon() {
	if c != nil {
		c.file.Close()
	}
}

func (x *exporter) create(base record.Offset) (*copied, error) {
	f, err := os.OpenFile(filepath.Join(x.target, kafkalog.SegmentName(base)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, exportFileMode)
	if err != nil {
		return nil, err
	}
	if x.batches == 0 {
		x.first = base
	}
	x.segments++
	x.index.Reset(base, kafkalog.IndexIntervalBytes)
	return &copied{base: base, file: f, out: bufio.NewWriterSize(f, exportBuffer)}, nil
}

// batch copies one batch with leader epoch 0, which the checksum does not cover: a broker refuses epochs above its own.
func (x *exporter) batch(to *copied, from io.ReaderAt, b *kafkalog.Walked) error {
	b.Header.SetEpoch(0)
	if err := x.index.Add(b.Header, to.size); err != nil {
		return err
	}
	to.out.Write(b.Header) // keeps its first error
	rest := io.NewSectionReader(from, b.Position+record.HeaderBytes, b.Size-record.HeaderBytes)
	// Hidden behind a plain Writer, or all of it would go by the file's own, much smaller buffer.
	n, err := io.CopyBuffer(struct{ io.Writer }{to.out}, struct{ io.Reader }{rest}, x.buf)
	if err == nil && n != b.Size-record.HeaderBytes {
		err = io.ErrUnexpectedEOF
	}
	to.size += b.Size
	x.batches++
	x.bytes += b.Size
	return err
}

func (x *exporter) finish(c *copied) error {
	err := c.out.Flush()
	if err == nil {
		err = c.file.Sync()
	}
	if err := errors.Join(err, c.file.Close()); err != nil {
		return err
	}
	x.index.Close()
	if err := x.write(kafkalog.IndexName(c.base), x.index.Index()); err != nil {
		return err
	}
	return x.write(kafkalog.TimeIndexName(c.base), x.index.TimeIndex())
}

// write makes a small file, durably.
func (x *exporter) write(name string, content []byte) error {
	f, err := os.OpenFile(filepath.Join(x.target, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, exportFileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// makeParents makes a directory and what it lies in, each synced into the one above.
func makeParents(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s: %w", dir, unix.ENOTDIR)
	case err == nil || !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := makeParents(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, exportDirMode); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
