package config

import (
	"fmt"
	"io"

	"github.com/spf13/pflag"
)

// options are what a command line says that is no key.
type options struct {
	file *string
	test *bool
}

// flagSet declares the flags of the server. Their values are texts, read by their keys, so that a fault in one reads
// the same wherever it comes from.
func (l *loader) flagSet() (*pflag.FlagSet, options) {
	f := pflag.NewFlagSet("trunkline-server", pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.SortFlags = false
	opt := options{
		file: f.StringP("config", "c", "", "read this configuration `FILE`"),
		test: f.BoolP("test", "t", false, "check the configuration and exit"),
	}
	for _, k := range l.keys {
		if k.flag != "" {
			f.Var(&flagValue{text: fmt.Sprint(k.def), bounds: k.bounds}, k.flag, k.effect)
		}
	}
	return f, opt
}

// flagValue is a flag's text as it was given; what it may be is shown in place of a type.
type flagValue struct{ text, bounds string }

func (v *flagValue) String() string     { return v.text }
func (v *flagValue) Set(s string) error { v.text = s; return nil }
func (v *flagValue) Type() string       { return v.bounds }

// Usage is what --help prints.
func Usage() string {
	l := &loader{keys: keys()}
	f, _ := l.flagSet()
	return `trunkline-server runs a broker.

Usage:
  trunkline-server [flags]                          serves
  trunkline-server config show [--origin] [flags]   prints the configuration it would have

Flags:
` + f.FlagUsagesWrapped(110) + `
Flags go before TRUNKLINE_… variables, these before the file, and this before the defaults. A key's variable is its
name in capitals with _ for each dot: TRUNKLINE_LIMITS_PAYLOAD=2MiB. Without -c the file is $TRUNKLINE_CONFIG, or the
first of ./trunkline.yaml, $XDG_CONFIG_HOME/trunkline/trunkline.yaml and /etc/trunkline/trunkline.yaml. HUP reads it again.
`
}
