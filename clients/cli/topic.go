package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

func (a *app) topicCommand() *cobra.Command {
	topic := a.group("topic", "Make, list, describe, alter, trim and delete topics")
	var config trunkline.TopicConfig
	var settings []string
	var store string
	create := &cobra.Command{
		Use:   "create NAME [--partitions N] [--storage NAME] [--set key=value]…",
		Short: "Make a topic",
		Args:  argCount(1, 1),
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cmd.Flags().Changed("partitions") && config.Partitions < 1 {
				return fmt.Errorf("--partitions %d is less than 1", config.Partitions)
			}
			if cmd.Flags().Changed("storage") {
				settings = append(settings, "storage="+store)
			}
			config.Settings, err = readSettings(settings)
			return err
		},
		RunE: a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
			return a.createTopic(ctx, c, args[0], config)
		}),
	}
	create.Flags().IntVar(&config.Partitions, "partitions", 0, "number of partitions; default is the server's")
	create.Flags().StringVar(&store, "storage", "", "the store that keeps the topic, for good: filelog, memory or archive; default is filelog")
	create.Flags().StringArrayVar(&settings, "set", nil, "a setting, `key=value`; may repeat")
	create.DisableFlagsInUseLine = true
	topic.AddCommand(create, a.alterCommand(), a.trimCommand(), a.removeCommand(), &cobra.Command{
		Use: "ls", Short: "List topics", Args: argCount(0, 0), RunE: a.connected(a.listTopics),
	}, &cobra.Command{
		Use: "info NAME", Short: "Describe a topic and its partitions", Args: argCount(1, 1), RunE: a.connected(a.describeTopic),
		ValidArgsFunction: a.completeTopics,
	})
	return topic
}

// destroyFlags are the flags of what destroys records.
type destroyFlags struct{ dryRun, yes bool }

const asksHelp = "It asks on a terminal, unless --yes is given; where standard\n" +
	"input or standard error is none, in a script or a pipe, it does not ask: the command line is the answer.\n" +
	"--dry-run says what would be lost."

func (f *destroyFlags) declare(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would be lost, and change nothing")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	cmd.DisableFlagsInUseLine = true
}

func (a *app) trimCommand() *cobra.Command {
	var f destroyFlags
	cmd := &cobra.Command{
		Use: "trim TOPIC/PARTITION@POSITION [--dry-run] [--yes]", Short: "Remove the records of a partition below a position", Args: argCount(1, 1),
		ValidArgsFunction: a.completeTopics,
	}
	f.declare(cmd)
	cmd.Long = "Remove the records of a partition below a position, for good. " + asksHelp
	var addr address.Address
	cmd.PreRunE = func(_ *cobra.Command, args []string) (err error) {
		if addr, err = checkAddress(args[0], (*address.Address).ForRead); err != nil {
			return err
		}
		if addr.Partition == partition.None || addr.Position.Kind == address.None {
			return usage("%q names no partition and position; write TOPIC/PARTITION@POSITION, such as orders/0@100", args[0])
		}
		return nil
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
		return a.trimTopic(ctx, c, addr, f)
	})
	return cmd
}

func (a *app) removeCommand() *cobra.Command {
	var f destroyFlags
	cmd := &cobra.Command{
		Use: "rm NAME [--dry-run] [--yes]", Short: "Delete a topic and its records", Args: argCount(1, 1), ValidArgsFunction: a.completeTopics,
	}
	f.declare(cmd)
	cmd.Long = "Delete a topic and its records, for good. " + asksHelp
	cmd.RunE = a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
		return a.deleteTopic(ctx, c, args[0], f)
	})
	return cmd
}

// lossJSON is what --dry-run prints as JSON.
type lossJSON struct {
	DryRun   bool   `json:"dry_run"`
	Topic    string `json:"topic"`
	LogStart string `json:"log_start,omitempty"` // the first record that would be left
	Records  int64  `json:"records"`
	Bytes    *int64 `json:"bytes,omitempty"`
}

func (a *app) alterCommand() *cobra.Command {
	var list []string
	var settings map[string]string
	var partitions int
	alter := &cobra.Command{
		Use:               "alter NAME [--partitions N] [--set key=value]…",
		Short:             "Change a topic's settings, or give it more partitions",
		Args:              argCount(1, 1),
		ValidArgsFunction: a.completeTopics,
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cmd.Flags().Changed("partitions") {
				list = append(list, "partitions="+strconv.Itoa(partitions))
			}
			if len(list) == 0 {
				return usage("name what to change with --set key=value or --partitions N")
			}
			settings, err = readSettings(list)
			return err
		},
		RunE: a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
			if err := c.AlterTopic(ctx, args[0], settings); err != nil {
				return err
			}
			return a.describeTopic(ctx, c, args)
		}),
	}
	alter.Flags().IntVar(&partitions, "partitions", 0, "grow the topic to `N` partitions")
	alter.Flags().StringArrayVar(&list, "set", nil, "a setting, `key=value`; may repeat")
	alter.DisableFlagsInUseLine = true
	return alter
}

func (a *app) trimTopic(ctx context.Context, c *trunkline.Client, addr address.Address, f destroyFlags) error {
	if f.dryRun {
		return a.dryTrim(ctx, c, addr)
	}
	if err := a.confirm(ctx, f.yes, fmt.Sprintf("Remove the records below %s for good?", addr)); err != nil {
		return err
	}
	start, err := c.TrimTopic(ctx, addr.String())
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]string{"log_start": start})
	}
	_, err = fmt.Fprintf(a.out, "%s is the first record now\n", start)
	return err
}

// dryTrim finds out where a trim would end.
func (a *app) dryTrim(ctx context.Context, c *trunkline.Client, addr address.Address) error {
	topic, err := c.TopicInfo(ctx, string(addr.Topic))
	if err != nil {
		return err
	}
	part, err := partitionOf(topic, addr.Partition)
	if err != nil {
		return err
	}
	start, err := resolve(ctx, c, addr, part)
	if err != nil {
		return err
	}
	loss := lossJSON{DryRun: true, Topic: topic.Name, LogStart: fmt.Sprintf("%s/%d@%d", topic.Name, addr.Partition, start), Records: int64(start - part.Start)}
	if a.json {
		return a.printJSON(loss)
	}
	_, err = fmt.Fprintf(a.out, "%s would be the first record; records that would be lost: %d\n", loss.LogStart, loss.Records)
	return err
}

// partitionOf finds a partition that is there, with its log.
func partitionOf(topic *trunkline.Topic, id partition.ID) (*trunkline.Partition, error) {
	if id < 0 || int(id) >= len(topic.Partitions) {
		return nil, &trunkline.ServerError{Code: errcode.UnknownPartition,
			Text: fmt.Sprintf("topic %s has the partitions 0 to %d, not %d; name one of these", topic.Name, len(topic.Partitions)-1, id)}
	}
	part := &topic.Partitions[id]
	if part.Log == nil {
		return nil, fmt.Errorf("%s/%d: %w", topic.Name, part.Partition, &trunkline.ServerError{Code: part.Error, Text: "the partition is not there now; try again"})
	}
	return part, nil
}

// resolve turns a position into an offset: that of the first record from there on, or the end.
func resolve(ctx context.Context, c *trunkline.Client, addr address.Address, part *trunkline.Partition) (trunkline.Offset, error) {
	reading, err := c.Get(ctx, addr.String(), 1)
	if err != nil {
		return 0, err
	}
	defer reading.Close()
	for r, err := range reading.Messages(ctx) {
		if err != nil {
			return 0, err
		}
		return r.Offset, nil
	}
	return part.HighWatermark, nil
}

func readSettings(list []string) (map[string]string, error) {
	settings := make(map[string]string)
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" || value == "" {
			return nil, fmt.Errorf("--set %q is not key=value", s)
		}
		if _, twice := settings[key]; twice {
			return nil, fmt.Errorf("--set names %s twice", key)
		}
		settings[key] = value
	}
	return settings, nil
}

func (a *app) createTopic(ctx context.Context, c *trunkline.Client, name string, config trunkline.TopicConfig) error {
	if err := c.CreateTopic(ctx, name, config); err != nil {
		return err
	}
	t, err := c.TopicInfo(ctx, name)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(t)
	}
	_, err = fmt.Fprintf(a.out, "created %s, partitions: %d\n", t.Name, len(t.Partitions))
	return err
}

func (a *app) listTopics(ctx context.Context, c *trunkline.Client, _ []string) error {
	topics, err := c.Topics(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string][]trunkline.Topic{"topics": append([]trunkline.Topic{}, topics...)})
	}
	w := a.table()
	w.row("TOPIC", "PARTITIONS")
	for _, t := range topics {
		if t.Error != "" {
			w.row(t.Name, string(t.Error))
			continue
		}
		w.row(t.Name, strconv.Itoa(len(t.Partitions)))
	}
	return w.flush()
}

func (a *app) describeTopic(ctx context.Context, c *trunkline.Client, args []string) error {
	t, err := c.TopicInfo(ctx, args[0])
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(t)
	}
	fmt.Fprintf(a.out, "topic %s, id %s\n", t.Name, t.ID)
	settings := a.table()
	for _, key := range slices.Sorted(maps.Keys(t.Settings)) {
		settings.row("  "+key, fmt.Sprint(t.Settings[key]))
	}
	if err := settings.flush(); err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "PARTITION\tLEADER\tLOG START\tHIGH WATERMARK\tLOG END\tBYTES\tSEGMENTS\t")
	for _, p := range t.Partitions {
		if p.Log == nil {
			fmt.Fprintf(w, "%d\t%d\t%s\t\t\t\t\t\n", p.Partition, p.Leader, p.Error)
			continue
		}
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", p.Partition, p.Leader, p.Start, p.HighWatermark, p.End, p.Bytes, p.Segments)
	}
	return w.Flush()
}

func (a *app) deleteTopic(ctx context.Context, c *trunkline.Client, name string, f destroyFlags) error {
	if f.dryRun {
		return a.dryDelete(ctx, c, name)
	}
	if err := a.confirm(ctx, f.yes, "Delete the topic "+name+" and all its records?"); err != nil {
		return err
	}
	if err := c.DeleteTopic(ctx, name); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(trunkline.Topic{Name: name})
	}
	_, err := fmt.Fprintf(a.out, "deleted %s\n", name)
	return err
}

// dryDelete says what a topic holds.
func (a *app) dryDelete(ctx context.Context, c *trunkline.Client, name string) error {
	t, err := c.TopicInfo(ctx, name)
	if err != nil {
		return err
	}
	loss, bytes := lossJSON{DryRun: true, Topic: name}, int64(0)
	for _, p := range t.Partitions {
		if p.Log != nil {
			loss.Records += int64(p.HighWatermark - p.Start)
			bytes += p.Bytes
		}
	}
	loss.Bytes = &bytes
	if a.json {
		return a.printJSON(loss)
	}
	_, err = fmt.Fprintf(a.out, "%s would be deleted; partitions: %d, records that would be lost: %d, %s\n",
		name, len(t.Partitions), loss.Records, humanize.IBytes(uint64(bytes)))
	return err
}
