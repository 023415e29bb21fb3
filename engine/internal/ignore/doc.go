// Package ignore decides which entries of a tree are left out or chosen: by patterns
// of gitignore(5), by what git itself ignores in a work tree, and by Include.
//
// Git's rules are compared with git in TestGitRepositories and TestGlobLikeGit.
package ignore
