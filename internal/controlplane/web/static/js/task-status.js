import { TaskElement } from './element.js'
import { setIcon } from './icons.js'

/** The nine statuses in words. */
export const STATUS_WORDS = {
  pending: 'Pending', awaiting_approval: 'Awaiting approval', approved: 'Approved', installing: 'Installing', verifying: 'Verifying',
  completed: 'Completed', failed: 'Failed', rejected: 'Rejected', canceled: 'Canceled',
}

/** Icon and word of a task's status. */
class TaskStatus extends TaskElement {
  static types = ['status']

  draw({ status }) {
    if (!STATUS_WORDS[status] || status === this.dataset.status) return
    this.dataset.status = status
    setIcon(this, status)
    this.querySelector('span').textContent = STATUS_WORDS[status]
  }
}
customElements.define('task-status', TaskStatus)
