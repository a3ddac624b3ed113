/**
 * Keyboard: / search, j and k row, x select, Enter open, a the row's approval
 * page, g d / g t / g a / g m / g r go to. No key ever decides anything.
 */
const GO = { d: '/dashboard', t: '/tasks', a: '/tasks?q=status%3Aawaiting_approval', m: '/machines', r: '/regions' }
const GO_WITHIN = 1_200
let goSince = 0

const rows = () => [...document.querySelectorAll('table[data-keys] tbody tr:has(.row-link)')]

function move(step) {
  const table = document.querySelector('task-table')
  if (table) return table.move(step)
  const all = rows()
  if (!all.length) return
  const at = all.findIndex((r) => r.hasAttribute('data-cursor'))
  const next = all[Math.min(Math.max(at + step, 0), all.length - 1)]
  all[at]?.removeAttribute('data-cursor')
  next.setAttribute('data-cursor', '')
  next.querySelector('a').focus()
}

addEventListener('keydown', (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented) return
  const typing = e.target.closest?.('input, textarea, select, [contenteditable]')
  if (e.key === 'Escape') {
    if (typing) typing.blur()
    for (const open of document.querySelectorAll('details.ask[open]')) open.open = false
    return
  }
  if (typing) return
  if (Date.now() - goSince < GO_WITHIN) {
    goSince = 0
    // A page that the rail does not lead to is not there.
    if (GO[e.key] && document.querySelector(`.rail a[href="${GO[e.key]}"]`)) location.assign(GO[e.key])
    return
  }
  switch (e.key) {
    case '/':
      e.preventDefault()
      document.querySelector('main .filters input[name="q"], .topbar input[type="search"]')?.select()
      break
    case 'g': goSince = Date.now(); break
    case 'j': move(1); break
    case 'k': move(-1); break
    case 'x': document.querySelector('task-table')?.toggle(); break
    case 'a': {
      const row = document.querySelector('tr[data-cursor]')
      if (row?.dataset.task && row.querySelector('[data-status="awaiting_approval"]')) location.assign(`/tasks/${row.dataset.task}/approve`)
    }
  }
})
