package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// logCommand holds what works on a partition's directory by itself, without a server.
func (a *app) logCommand() *cobra.Command {
	cmd := a.group("log", "Look into a partition's directory, without a server")
	cmd.Long = "Look into a partition's directory, <topic>-<partition>, without a server. Stop the server before:\n" +
		"the end of a log that is being written may look torn."
	cmd.AddCommand(a.logDumpCommand(), a.logVerifyCommand(), a.logExportCommand())
	return cmd
}

// logDir is a partition's directory as it lay there when it was listed.
type logDir struct {
	path      string
	topic     string
	partition partition.ID
	segments  []logSegment // ascending
	start     record.Offset
}

// logSegment is one segment file.
type logSegment struct {
	base record.Offset
	size int64
}

// listLog lists a partition's directory.
func listLog(path string) (*logDir, error) {
	whole, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(whole)
	if err != nil {
		return nil, err
	}
	d := &logDir{path: whole}
	for _, e := range entries { // in the order of their names, which is that of their offsets
		base, ok := kafkalog.ParseSegmentName(e.Name())
		if !ok {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: not a regular file", filepath.Join(whole, e.Name()))
		}
		d.segments = append(d.segments, logSegment{base: base, size: info.Size()})
	}
	if len(d.segments) == 0 {
		return nil, fmt.Errorf("%s has no segment, no *.log file; name the directory of a partition, <topic>-<partition>", path)
	}
	var ok bool
	if d.topic, d.partition, ok = kafkalog.ParsePartitionDir(filepath.Base(whole)); !ok {
		d.topic, d.partition = filepath.Base(whole), partition.None // a copy under another name
		return d, nil
	}
	d.start, err = d.logStart()
	return d, err
}

// logStart is the offset up to which the log was trimmed, as the checkpoint beside the directory tells; 0 where it tells
// nothing, and the first segment's name is all there is.
func (d *logDir) logStart() (record.Offset, error) {
	name := filepath.Join(filepath.Dir(d.path), kafkalog.LogStartCheckpointName)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	o, _, err := kafkalog.FindOffset(text, d.topic, d.partition)
	if err != nil {
		return 0, fmt.Errorf("%s: %w; repair it, or copy the partition's directory away from it", name, err)
	}
	return o, nil
}

// file is a file of the directory.
func (d *logDir) file(name string) string { return filepath.Join(d.path, name) }

// open opens a segment's file and returns a reader of the bytes that it had when it was listed.
func (d *logDir) open(g logSegment) (*os.File, *io.SectionReader, error) {
	f, err := os.Open(d.file(kafkalog.SegmentName(g.base)))
	if err != nil {
		return nil, nil, err
	}
	return f, io.NewSectionReader(f, 0, g.size), nil
}

// compactedHelp explains the flag that verify and export share.
const compactedHelp = "allow offsets to be missing, as in a log that Kafka compacted"

func (a *app) logVerifyCommand() *cobra.Command {
	var compacted bool
	cmd := &cobra.Command{
		Use:   "verify DIR [--compacted]",
		Short: "Find the damage in a partition's directory",
		Long: "Verify a partition's directory: every batch's format, length, checksum, offset and leader epoch, and\n" +
			"every index entry. Each fault is one line that names file, position and offset. Exit code 0: sound.",
		Args: argCount(1, 1), DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&compacted, "compacted", false, compactedHelp)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a.started = true
		return a.verifyLog(cmd.Context(), args[0], compacted)
	}
	return cmd
}

// findingJSON is a finding as --json prints it.
type findingJSON struct {
	File     string         `json:"file"`
	Position int64          `json:"position"`
	Offset   int64          `json:"offset"`
	Fault    kafkalog.Fault `json:"fault"`
	What     string         `json:"what"`
}

// verifiedJSON is the last line that --json prints: what was looked at, and whether it is sound.
type verifiedJSON struct {
	Path     string `json:"path"`
	Sound    bool   `json:"sound"`
	Faults   int64  `json:"faults"`
	Segments int    `json:"segments"`
	Batches  int64  `json:"batches"`
	First    int64  `json:"first"`
	Next     int64  `json:"next"`
}

func (a *app) verifyLog(ctx context.Context, path string, compacted bool) error {
	d, err := listLog(path)
	if err != nil {
		return err
	}
	gaps, err := d.gaps(compacted)
	if err != nil {
		return err
	}
	v := d.verifier(gaps, func(f kafkalog.Finding) {
		if a.json {
			// The writer keeps its first error, which the end of the command reports.
			_ = a.printJSON(findingJSON{f.File, f.Position, int64(f.Offset), f.Fault, f.What})
			return
		}
		fmt.Fprintln(a.out, f)
	})
	if err := d.verify(ctx, v, true); err != nil {
		return err
	}
	n := v.Findings()
	if a.json {
		summary := verifiedJSON{Path: path, Sound: n == 0, Faults: n, Segments: len(d.segments), Batches: v.Batches(),
			First: int64(d.segments[0].base), Next: int64(v.Next())}
		if err := a.printJSON(summary); err != nil {
			return err
		}
	}
	if n > 0 {
		return fmt.Errorf("%s is damaged, faults: %d", path, n)
	}
	if a.json {
		return nil
	}
	a.note("%s is sound: segments %d, batches %d, offsets %d to %d", path, len(d.segments), v.Batches(), d.segments[0].base, v.Next()-1)
	return nil
}

// gaps is the offset below which records may be missing: that of a log that was adopted, or all of it where the user
// says so.
func (d *logDir) gaps(compacted bool) (record.Offset, error) {
	if compacted {
		return math.MaxInt64, nil
	}
	text, err := os.ReadFile(d.file(kafkalog.AdoptedBelowName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return kafkalog.ParseAdoptedBelow(text)
}

func (d *logDir) verifier(gaps record.Offset, report func(kafkalog.Finding)) *kafkalog.Verifier {
	return kafkalog.NewVerifier(kafkalog.VerifyOptions{GapsBelow: gaps, LogStart: d.start}, report)
}

// verify hands the directory's files to a verifier.
func (d *logDir) verify(ctx context.Context, v *kafkalog.Verifier, indexes bool) error {
	text, err := os.ReadFile(d.file(kafkalog.EpochCheckpointName))
	switch {
	case err == nil:
		v.Epochs(text)
	case !errors.Is(err, fs.ErrNotExist): // that it is missing, the verifier reports
		return err
	}
	for _, g := range d.segments {
		if err := d.verifySegment(ctx, v, g, indexes); err != nil {
			return err
		}
	}
	v.End()
	return nil
}

func (d *logDir) verifySegment(ctx context.Context, v *kafkalog.Verifier, g logSegment, indexes bool) error {
	f, in, err := d.open(g)
	if err != nil {
		return err
	}
	defer f.Close()
	segment := kafkalog.Segment{Base: g.base, Size: g.size, Log: interruptible{ctx.Err, in}}
	if indexes {
		for name, reader := range map[string]*io.Reader{kafkalog.IndexName(g.base): &segment.Index, kafkalog.TimeIndexName(g.base): &segment.TimeIndex} {
			f, err := os.Open(d.file(name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			defer f.Close()
			*reader = f
		}
	}
	return v.Segment(segment)
}

// interruptible makes a long read end where its command was interrupted.
type interruptible struct {
	interrupted func() error
	in          io.Reader
}

func (r interruptible) Read(p []byte) (int, error) {
	if err := r.interrupted(); err != nil {
		return 0, err
	}
	return r.in.Read(p)
}
