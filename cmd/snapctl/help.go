package main

import (
	"embed"
	"fmt"
	"path"
	"strings"

	"github.com/spf13/cobra"
)

// helpCommand is cobra's, but that an unknown topic is an error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND or TOPIC]",
		Short: "Help about a command or a topic",
		Args:  takes("[COMMAND]", "[SUBCOMMAND]"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			if len(args) == 0 {
				for _, c := range cmd.Root().Commands() {
					if !c.Hidden {
						names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return &usageError{err: fmt.Errorf("help: no such command or topic: %q", strings.Join(args, " ")), help: "snapctl"}
			}
			about.InitDefaultHelpFlag()
			about.InitDefaultVersionFlag()
			return about.Help()
		},
	}
}

// helpPages are what README.md links to as well. They are Markdown that reads well as it
// is, so nothing has to render it: the first line is the title.
//
//go:embed help/*.md
var helpPages embed.FS

// helpTopics are commands that do nothing, which cobra lists as help topics: one for
// each page.
func helpTopics() []*cobra.Command {
	pages, err := helpPages.ReadDir("help")
	if err != nil {
		panic(err) // they are part of the program
	}
	var topics []*cobra.Command
	for _, page := range pages {
		text, err := helpPages.ReadFile(path.Join("help", page.Name()))
		if err != nil {
			panic(err)
		}
		title, body, _ := strings.Cut(strings.TrimPrefix(string(text), "# "), "\n")
		topics = append(topics, &cobra.Command{
			Use:   strings.TrimSuffix(page.Name(), ".md"),
			Short: title,
			Long:  strings.TrimSpace(body),
		})
	}
	return topics
}
