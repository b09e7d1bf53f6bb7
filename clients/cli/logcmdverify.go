package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
)

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

func (a *app) verifyLog(ctx context.Context, path string, compacted bool) error {
	d, err := listLog(path)
	if err != nil {
		return err
	}
	v := d.verifier(compacted, func(f kafkalog.Finding) {
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
	if n := v.Findings(); n > 0 {
		return fmt.Errorf("%s is damaged, faults: %d", path, n)
	}
	a.note("%s is sound: segments %d, batches %d, offsets %d to %d", path, len(d.segments), v.Batches(), d.segments[0].base, v.Next()-1)
	return nil
}

func (d *logDir) verifier(compacted bool, report func(kafkalog.Finding)) *kafkalog.Verifier {
	return kafkalog.NewVerifier(kafkalog.VerifyOptions{Compacted: compacted, LogStart: d.start}, report)
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
