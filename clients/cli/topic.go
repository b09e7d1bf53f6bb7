package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

func (a *app) topicCommand() *cobra.Command {
	topic := &cobra.Command{
		Use:   "topic",
		Short: "Make, list, describe, alter, trim and delete topics",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("name what to do with topics: create, ls, info, alter, trim or rm")
		},
	}
	var config trunkline.TopicConfig
	var settings []string
	create := &cobra.Command{
		Use:     "create NAME [--partitions N] [--set key=value]…",
		Short:   "Make a topic",
		Args:    argCount(1, 1),
		PreRunE: func(*cobra.Command, []string) (err error) { config.Settings, err = readSettings(settings); return err },
		RunE: a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
			return a.createTopic(ctx, c, args[0], config)
		}),
	}
	create.Flags().IntVar(&config.Partitions, "partitions", 0, "number of partitions; default is the server's")
	create.Flags().StringArrayVar(&settings, "set", nil, "a setting, `key=value`; may repeat")
	create.DisableFlagsInUseLine = true
	topic.AddCommand(create, a.alterCommand(), &cobra.Command{
		Use: "trim TOPIC/PARTITION@POSITION", Short: "Remove the records of a partition below a position", Args: argCount(1, 1),
		RunE: a.connected(a.trimTopic),
	}, &cobra.Command{
		Use: "ls", Short: "List topics", Args: argCount(0, 0), RunE: a.connected(a.listTopics),
	}, &cobra.Command{
		Use: "info NAME", Short: "Describe a topic and its partitions", Args: argCount(1, 1), RunE: a.connected(a.describeTopic),
	}, &cobra.Command{
		Use: "rm NAME", Short: "Delete a topic and its records", Args: argCount(1, 1), RunE: a.connected(a.deleteTopic),
	})
	return topic
}

func (a *app) alterCommand() *cobra.Command {
	var list []string
	var settings map[string]string
	alter := &cobra.Command{
		Use:   "alter NAME --set key=value…",
		Short: "Change a topic's settings",
		Args:  argCount(1, 1),
		PreRunE: func(*cobra.Command, []string) (err error) {
			if len(list) == 0 {
				return usage("name what to change with --set key=value")
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
	alter.Flags().StringArrayVar(&list, "set", nil, "a setting, `key=value`; may repeat")
	alter.DisableFlagsInUseLine = true
	return alter
}

func (a *app) trimTopic(ctx context.Context, c *trunkline.Client, args []string) error {
	start, err := c.TrimTopic(ctx, args[0])
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]string{"log_start": start})
	}
	_, err = fmt.Fprintf(a.out, "%s is the first record now\n", start)
	return err
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
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TOPIC\tPARTITIONS")
	for _, t := range topics {
		if t.Error != "" {
			fmt.Fprintf(w, "%s\t%s\n", t.Name, t.Error)
			continue
		}
		fmt.Fprintf(w, "%s\t%d\n", t.Name, len(t.Partitions))
	}
	return w.Flush()
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
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, key := range slices.Sorted(maps.Keys(t.Settings)) {
		fmt.Fprintf(w, "  %s\t%v\n", key, t.Settings[key])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	w = tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
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

func (a *app) deleteTopic(ctx context.Context, c *trunkline.Client, args []string) error {
	if err := c.DeleteTopic(ctx, args[0]); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(trunkline.Topic{Name: args[0]})
	}
	_, err := fmt.Fprintf(a.out, "deleted %s\n", args[0])
	return err
}
