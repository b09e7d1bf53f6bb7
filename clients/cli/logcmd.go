package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// logCommand holds what works on a partition's directory by itself, without a server.
func (a *app) logCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Look into a partition's directory, without a server",
		Long: "Look into a partition's directory, <topic>-<partition>, without a server. Stop the server before:\n" +
			"the end of a log that is being written may look torn.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("name what to do with a log: dump, verify or export")
		},
	}
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
